"""How far can one go? Models x benchmarks x methods x budgets, in one job. `--help` explains the flags.

    python jobs/sweep.py
    python jobs/sweep.py sweep.yaml --plan
    ray job submit --working-dir . -- python jobs/sweep.py sweep.yaml --output s3://bucket/results

Without arguments it is the demo: small models, all methods, three budgets, on two CPU cores.
"""

from __future__ import annotations

import sys

from pipelines.config.sweep_config import parse_sweep


def main() -> int:
    grid = parse_sweep(sys.argv[1:])
    from pipelines.sweep import sweep  # not needed to refuse a typing error

    return sweep(grid)


if __name__ == "__main__":
    sys.exit(main())
