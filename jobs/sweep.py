"""Run every model on every benchmark with every method and budget; `--help` lists the flags.

    python jobs/sweep.py
    python jobs/sweep.py sweep.yaml --plan
    ray job submit --working-dir . -- python jobs/sweep.py sweep.yaml --output s3://bucket/results

Without arguments it runs the demo: small models, all methods, three budgets, on two CPU cores.
"""

import sys

from pipelines.config.command_line import one_line_errors
from pipelines.config.sweep_config import parse_sweep


@one_line_errors("sweep.py")
def main() -> int:
    config = parse_sweep(sys.argv[1:])
    from pipelines.sweep import sweep  # imports Ray, which a wrong command should not wait for

    return sweep(config)


if __name__ == "__main__":
    sys.exit(main())
