"""Write the report of runs: the paper's tables and figures with your numbers, from the answers alone.

    python jobs/report.py results                          # all runs of an output folder
    python jobs/report.py results/gqa-* results/pope-*     # some of them
    python jobs/report.py s3://bucket/results --output report

It makes, in `report` beside the runs or in the folder of --output:

    report.html      one page that needs nothing else: open it, send it, print it
    figures/         its charts as SVG
    tables/          each table as CSV, Markdown and LaTeX
    queries.sql      for DuckDB: how numbers come from their rows

Runs of the same model, benchmark and settings are compared row by row; runs of other settings have tables of their own.
Without a vanilla run there is accuracy, but not what is kept of it. Pictures that jobs/visualize.py has left in
`pictures` beside the runs are on the page. The same runs give the same tables, byte for byte. No model is loaded, and
nothing of the runs is changed.
"""

from __future__ import annotations

import argparse
import sys

from pipelines.config.paths import to_write
from pipelines.report.writer import write_report
from pipelines.text import redacted


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="folders of runs, or folders that hold some"
    )
    parser.add_argument(
        "--output", metavar="FOLDER", help="where to write it (report, beside the first run)"
    )
    options = parser.parse_args()
    try:
        output = to_write(options.output, "output") if options.output else None
        folder, names = write_report(options.runs, output)
    except (ValueError, FileNotFoundError) as error:
        print(f"report.py: {redacted(' '.join(str(error).split()))}", file=sys.stderr)
        return 2
    print(redacted(folder.child(names[0]).uri))
    print(
        f"and {len(names) - 1} files beside it: the tables as CSV, Markdown and LaTeX, the charts, and the queries"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
