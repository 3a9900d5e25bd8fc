"""Copy runs to an MLflow server that does not have them: it was down, is new, or lost its data.

    # to the file or server that each run was meant for
    python jobs/track.py results
    # all of them to this server or file
    python jobs/track.py results --tracking-uri http://mlflow:5000
    python jobs/track.py s3://bucket/results --tracking-uri sqlite:///runs.db

Everything comes from the record.json beside each run's answers. Runs that MLflow already has are
not changed, so the command can be repeated, also while a job runs. A server must be named by the
flag or by MLFLOW_TRACKING_URI: nothing is sent to a server that only a record names, because
anybody can write one.
"""

import sys

from pipelines.config.command_line import CommandParser, one_line_errors
from pipelines.config.paths import OUTPUT, mlflow_address, to_write
from pipelines.results.mlflow_tracker import replay


@one_line_errors("track.py")
def main() -> int:
    parser = CommandParser("track.py", __doc__)
    parser.add_argument(
        "output",
        nargs="?",
        default=OUTPUT,
        metavar="OUTPUT",
        help="The --output of the runs. Default: results; ~/apet-results under ray job submit.",
    )
    parser.add_argument(
        "--tracking-uri",
        metavar="URI",
        help="MLflow server or database. Default: the file of each record, or the server of"
        " MLFLOW_TRACKING_URI.",
    )
    parser.add_argument(
        "--experiment", metavar="NAME", help="Experiment in MLflow. Default: that of each record."
    )
    options = parser.parse()
    output = to_write(options.output, "output")
    uri = mlflow_address(options.tracking_uri) if options.tracking_uri else None
    return 0 if replay(output, uri, options.experiment) else 1


if __name__ == "__main__":
    sys.exit(main())
