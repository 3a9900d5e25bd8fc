"""Write the report of runs: the paper's tables and figures with your numbers, from the answers.

    python jobs/report.py results                          # all runs of an output folder
    python jobs/report.py results/gqa-* results/pope-*     # some of them
    python jobs/report.py s3://bucket/results --output report

It writes, to `report` beside the runs or to the folder of --output:

    report.html      a page without external files: open it, send it, print it
    figures/         its charts as SVG
    tables/          each table as CSV, Markdown and LaTeX
    queries.sql      for DuckDB: how the numbers follow from the rows

Runs of the same model, benchmark and settings are compared row by row; runs with other settings
get their own tables. Without a vanilla run, the report shows accuracy but not the share of it that
is kept. Pictures that jobs/visualize.py wrote to `pictures` beside the runs appear on the page. The
same runs give the same tables, byte for byte. No model is loaded, and the runs are not changed.
"""

import sys

from pipelines.config.command_line import CommandParser, one_line_errors
from pipelines.config.paths import to_write
from pipelines.report.writer import write_report
from pipelines.text import redacted


@one_line_errors("report.py")
def main() -> int:
    parser = CommandParser("report.py", __doc__)
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="Folders of runs, or folders that contain runs."
    )
    parser.add_argument(
        "--output", metavar="FOLDER", help="Folder of the report. Default: report, beside the runs."
    )
    options = parser.parse()
    output = to_write(options.output, "output") if options.output else None
    folder, names = write_report(options.runs, output)
    print(redacted(folder.child(names[0]).uri))
    print(
        f"and {len(names) - 1} files beside it: tables as CSV, Markdown and LaTeX, charts, queries"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
