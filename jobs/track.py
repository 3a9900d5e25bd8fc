"""Bring runs to MLflow that it has missed: its server was down, another one is wanted, or its database is gone.

    python jobs/track.py results                                        # to the file or server each run was meant for
    python jobs/track.py results --tracking-uri http://mlflow:5000      # all of them to this server
    python jobs/track.py s3://bucket/results --tracking-uri sqlite:///runs.db

Everything is in the record.json beside each run's answers. Runs that are there already stay as they are, so this can be
repeated, and it may run while a job does. A server has to be named, by the flag or by MLFLOW_TRACKING_URI: what only a
record names, which anybody can write, gets nothing.
"""

from __future__ import annotations

import argparse
import sys

from pipelines.config.paths import OUTPUT, mlflow_at, to_write
from pipelines.results.mlflow_tracker import replay
from pipelines.text import redacted


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "output",
        nargs="?",
        default=OUTPUT,
        help="the folder that --output named (results, or ~/apet-results)",
    )
    parser.add_argument(
        "--tracking-uri",
        help="another MLflow (where each record says: a file, or the server of MLFLOW_TRACKING_URI)",
    )
    parser.add_argument("--experiment", help="the experiment there (the one each record names)")
    options = parser.parse_args()
    try:
        output = to_write(options.output, "output")
        uri = mlflow_at(options.tracking_uri) if options.tracking_uri else None
        return 0 if replay(output, uri, options.experiment) else 1
    except (ValueError, OSError) as error:
        print(f"track.py: {redacted(' '.join(str(error).split()))}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
