"""Ask a model about videos, with its visual tokens compressed and not. `--help` explains the flags.

    python jobs/eval_video.py
    ray job submit --working-dir . -- python jobs/eval_video.py --budget 12.5% --output s3://bucket/results

Without arguments it is the demo: a few minutes on two CPU cores.
"""

from __future__ import annotations

import sys

from pipelines.config.eval_config import parse


def main() -> int:
    config = parse("video", sys.argv[1:])
    from pipelines.job import run  # not needed to refuse a typing error

    return run(config)


if __name__ == "__main__":
    sys.exit(main())
