"""Evaluate a model on images, with its visual tokens compressed and not; `--help` lists the flags.

    python jobs/eval_image.py
    ray job submit --working-dir . -- python jobs/eval_image.py --output s3://bucket/results

Without arguments it runs the demo: a few minutes on two CPU cores.
"""

import sys

from pipelines.config.command_line import one_line_errors
from pipelines.config.eval_config import parse


@one_line_errors("eval_image.py")
def main() -> int:
    config = parse("image", sys.argv[1:])
    from pipelines.job import run  # imports Ray, which a wrong command should not wait for

    return run(config)


if __name__ == "__main__":
    sys.exit(main())
