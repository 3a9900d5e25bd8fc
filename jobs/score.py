"""Score answers without a model: stored runs again, or external answers.

    python jobs/score.py results/pope-llava-1.5-7b-hf-apet-64-0a1b2c3d
    python jobs/score.py --answers llava-v1.5-7b.jsonl --benchmark pope --data eval/pope
    python jobs/score.py results/vqav2-... --submission vqav2.json
    python jobs/score.py results/pope-*-apet-* --against results/pope-llava-1.5-7b-hf-vanilla-4e5f6a

A run is scored from its Parquet files alone. With --against it is compared with another run on the
rows that both have: the share of accuracy that it keeps, the p-value, and the number of rows that
detecting a difference of one point takes. Intervals and p-values are those of jobs/report.py.
External answers are in LLaVA's format (lines with question_id and text), or in that of the
benchmark's own server or script; they are joined to the benchmark's rows by id. The last line of
the output is JSON. Only the file of --submission is written. docs/benchmarks.md explains the
numbers.
"""

import argparse
import os
import sys
from pathlib import Path

from pipelines.benchmarks import BENCHMARKS
from pipelines.benchmarks.score_report import ScoredAnswers, score_external, score_run
from pipelines.config.command_line import CommandParser, one_line_errors
from pipelines.config.paths import to_write
from pipelines.results.storage import Folder


@one_line_errors("score.py")
def main() -> int:
    options = _parser().parse()
    _check(options)
    try:
        if options.answers:
            files = (options.answers, options.benchmark, options.data, options.split)
            _print(score_external(*files), options)
        against = Folder.of(options.against) if options.against else None
        for run in options.runs:
            _print(score_run(Folder.of(run), against), options)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader, e.g. `head`, has closed the pipe. Python must not flush to it when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


def _parser() -> CommandParser:
    parser = CommandParser("score.py", __doc__)
    add = parser.add_argument
    add("runs", nargs="*", metavar="RUN", help="Folders of runs.")
    add("--answers", metavar="FILE", help="External answers.")
    add(
        "--benchmark",
        choices=BENCHMARKS,
        metavar="NAME",
        help=f"Benchmark of --answers: {', '.join(BENCHMARKS)}.",
    )
    add(
        "--data",
        metavar="FOLDER",
        help="The benchmark's files without media, for --answers and --submission.",
    )
    add("--split", metavar="NAME", help="Split of --answers. Default: test; dev for MMBench.")
    add("--submission", metavar="FILE", help="Write the file for the benchmark's server.")
    add("--against", metavar="VANILLA", help="Compare with this run, row by row.")
    return parser


def _check(options: argparse.Namespace) -> None:
    if bool(options.runs) == bool(options.answers):
        raise ValueError(
            "give the folders of runs, or --answers FILE with --benchmark NAME and --data FOLDER"
        )
    for name in ("benchmark", "split") if options.runs else ():
        if getattr(options, name) is not None:
            raise ValueError(f"--{name} is only for --answers: a run records its own; leave it out")
    if options.runs and options.data and not options.submission:
        raise ValueError(
            "--data with a run is only for --submission: the run's Parquet has everything else;"
            " leave it out"
        )
    if options.answers and not (options.benchmark and options.data):
        raise ValueError(
            "--answers needs --benchmark NAME and --data FOLDER, which define the questions"
        )
    if options.submission and len(options.runs) > 1:
        raise ValueError(f"--submission {options.submission} is one file; give only one run")
    if options.against and options.answers:
        raise ValueError(
            "--against is only for runs, which record their questions; leave it out, or answer the"
            " questions with a job"
        )


def _print(scored: ScoredAnswers, options: argparse.Namespace) -> None:
    if options.submission:
        content = scored.benchmark.submission(scored.table, options.data or scored.data)
        Path(to_write(options.submission, "submission")).write_bytes(content)
        answered = scored.table["status"].to_pylist().count("ok")
        print(f"{options.submission}: {answered:,} answers for the server")
    print("\n".join(scored.lines()))


if __name__ == "__main__":
    sys.exit(main())
