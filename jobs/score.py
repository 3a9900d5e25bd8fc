"""Score answers without a model: those of runs again, or answers that were made elsewhere.

    python jobs/score.py results/pope-llava-1.5-7b-hf-apet-64-0a1b2c3d
    python jobs/score.py --answers llava-v1.5-7b.jsonl --benchmark pope --data eval/pope
    python jobs/score.py results/vqav2-... --submission vqav2.json
    python jobs/score.py results/pope-*-apet-* --against results/pope-llava-1.5-7b-hf-vanilla-4e5f6a7b

A run is scored from its Parquet files alone, and compared with --against on the rows that both have: what it keeps, the
p-value, and how many rows one point would take. The intervals and p-values are those of jobs/report.py. Answers from
elsewhere are LLaVA's (question_id and text a line), or the form that the benchmark's own server or script takes; they
are joined to the benchmark's rows by id. The last line of the output is JSON. Nothing is changed but what --submission
names. docs/benchmarks.md says what the numbers are.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines.benchmarks import BENCHMARKS, DEFAULT_SPLITS, benchmark, rescoring
from pipelines.benchmarks.base import Benchmark
from pipelines.config.paths import to_write
from pipelines.metrics import summary
from pipelines.results import answers
from pipelines.results.run_record import RunRecord
from pipelines.results.storage import Folder
from pipelines.text import redacted

POINTS = ("points", "perception", "cognition", "total")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "runs", nargs="*", metavar="RUN", help="folders of answers, each one point of a job"
    )
    parser.add_argument("--answers", metavar="FILE", help="answers that were made elsewhere")
    parser.add_argument(
        "--benchmark",
        choices=BENCHMARKS,
        metavar="NAME",
        help=f"of --answers: {', '.join(BENCHMARKS)}",
    )
    parser.add_argument(
        "--data",
        metavar="FOLDER",
        help="of --answers and --submission: the benchmark's files, no media",
    )
    parser.add_argument(
        "--split", metavar="NAME", help="of --answers: of the benchmark (test; dev of MMBench)"
    )
    parser.add_argument(
        "--submission", metavar="FILE", help="write what the benchmark's server takes"
    )
    parser.add_argument(
        "--against",
        metavar="VANILLA",
        help="the run that those of RUN are compared with, row by row",
    )
    options = parser.parse_args()
    try:
        _check(options)
        if options.answers:
            _elsewhere(options)
        for run in options.runs:
            _run(run, options)
        sys.stdout.flush()
    except (
        BrokenPipeError
    ):  # `| head` has seen enough; nor is there anyone to flush to when Python ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, FileNotFoundError) as error:
        print(f"score.py: {redacted(' '.join(str(error).split()))}", file=sys.stderr)
        return 2
    return 0


def _check(options: argparse.Namespace) -> None:
    if bool(options.runs) == bool(options.answers):
        raise ValueError(
            "give the folders of runs, or --answers FILE with --benchmark NAME and --data FOLDER"
        )
    for name in ("benchmark", "split") if options.runs else ():
        if getattr(options, name) is not None:
            raise ValueError(
                f"--{name} is of --answers: a run says itself what it answered; leave it out"
            )
    if options.runs and options.data and not options.submission:
        raise ValueError(
            "--data is not read for a run without --submission: its Parquet has all; leave it out"
        )
    if options.answers and not (options.benchmark and options.data):
        raise ValueError(
            "--answers needs --benchmark NAME and --data FOLDER, which say what the questions were"
        )
    if options.submission and len(options.runs) > 1:
        raise ValueError(f"--submission {options.submission} is one file; give one run")
    if options.against and options.answers:
        raise ValueError(
            "--against is for RUN, which says what was asked; answer with a job to compare, or leave it out"
        )


def _elsewhere(options: argparse.Namespace) -> None:
    bench = benchmark(options.benchmark)
    split = options.split or DEFAULT_SPLITS.get(bench.name, "test")
    manifest = bench.rows(options.data, split)
    table, report = rescoring.join_answers(
        bench, manifest, rescoring.read_answers(options.answers), split
    )
    if not report.matched:
        raise ValueError(
            f"none of the answers is to a row of {options.data}: {' '.join(report.lines())}"
        )
    if options.submission:
        _submit(options.submission, bench, table, options.data)
    counts = {
        kind: getattr(report, kind)
        for kind in ("rows", "matched", "missing", "duplicate", "unknown")
    }
    _say(options.answers, bench, split, table, counts, report.lines())


def _run(run: str, options: argparse.Namespace) -> None:
    folder = Folder.of(run)
    stored, record = _stored(folder)
    bench = benchmark(stored["benchmark"][0].as_py())
    table = rescoring.rescore(stored, bench)
    changed = sum(map(_differ, stored["score"].to_pylist(), table["score"].to_pylist()))
    notes = [f"{changed:,} rows have another score than when they were answered"] if changed else []
    if options.submission:
        recorded = record.config.get("data") if record else None
        _submit(options.submission, bench, table, options.data or recorded)
    # a run's rows are matched by construction: what is counted is whether each is there once
    unique = len(set(stored["row_id"].to_pylist()))
    wanted = max(unique, record.rows["wanted"] if record else 0)
    counts = {
        "rows": wanted,
        "matched": unique,
        "missing": wanted - unique,
        "duplicate": len(stored) - unique,
    }
    against = (
        _against(Folder.of(options.against), stored, record, bench) if options.against else None
    )
    seed = int(record.config.get("seed") or 0) if record else 0
    split = stored["split"][0].as_py()
    _say(
        redacted(folder.uri),
        bench,
        split,
        table,
        {**counts, "changed": changed},
        notes,
        against,
        seed,
    )


def _stored(folder: Folder) -> tuple[pa.Table, RunRecord | None]:
    """A run's answers, and its record where there is one."""
    stored = answers.read(folder)
    if not len(stored):
        raise ValueError(
            f"{redacted(folder.uri)} holds no answers; give the folder of a run, as the job printed it"
        )
    with contextlib.suppress(FileNotFoundError):
        return stored, RunRecord.load(folder)
    return stored, None


def _against(
    folder: Folder, stored: pa.Table, record: RunRecord | None, bench: Benchmark
) -> pa.Table:
    """The run to compare with, scored again as well; it has to be of the same rows."""
    theirs, other = _stored(folder)
    asked = [
        (
            *(table[name][0].as_py() for name in ("benchmark", "split")),
            known and known.identity.get("manifest"),
        )
        for table, known in ((stored, record), (theirs, other))
    ]
    if asked[0][:2] != asked[1][:2] or (record and other and asked[0] != asked[1]):
        raise ValueError(
            f"{redacted(folder.uri)} answers other questions; give a run of the same benchmark and data"
        )
    return rescoring.rescore(theirs, bench)


def _differ(one: float | None, other: float | None) -> bool:
    return one != other and (one is None or other is None or abs(one - other) > 1e-9)


def _submit(path: str, bench: Benchmark, table: pa.Table, data: str | None) -> None:
    Path(to_write(path, "submission")).write_bytes(bench.submission(table, data))
    given = table["status"].to_pylist().count("ok")
    print(f"{path}: {given:,} answers for the server")


def _say(
    name: str,
    bench: Benchmark,
    split: str,
    table: pa.Table,
    counts: Mapping[str, int],
    notes: list[str],
    against: pa.Table | None = None,
    seed: int = 0,
) -> None:
    """A table for people, and one line of JSON."""
    metrics = summary.summarise(table, against, bench, seed=seed)
    print(f"{bench.name}, {split}: {name}")
    if "accuracy" in metrics:
        low, high = (metrics[f"accuracy_ci_{end}"] * bench.most for end in ("low", "high"))
        value = metrics["accuracy"] * bench.most
        scale, unit = (1.0, f" of {bench.most:g}") if bench.most > 1 else (100.0, " %")
        print(
            f"{bench.headline}: {scale * value:.2f}{unit} [{scale * low:.2f}, {scale * high:.2f}], the headline"
        )
    elif "rows_scored" in metrics:
        print(f"{bench.headline}, the headline, is of none of these rows")
    else:
        print("there is nothing to compare these answers with: their references are on a server")
    if bench.rule:
        print(f"({bench.rule})")
    if against is not None:
        print(_kept(metrics))
    mine = {
        key: value
        for key, value in metrics.items()
        if key.startswith(f"{bench.name}.") and "_ci_" not in key
    }
    width = max((len(key) for key in mine), default=0)
    for key, value in mine.items():
        print(f"  {key:<{width}}  {_shown(key, value)}")
    for note in notes:
        print(f"! {note}")
    result: dict[str, Any] = {
        "benchmark": bench.name,
        "split": split,
        "source": name,
        "headline": bench.headline,
    }
    if "accuracy" in metrics:
        result["value"] = metrics["accuracy"] * bench.most
    print(json.dumps({**result, **counts, "metrics": metrics}, ensure_ascii=False))


def _kept(metrics: Mapping[str, float]) -> str:
    if "accuracy_retention" not in metrics:
        return "nothing to compare: --against has no point on rows that both runs have answered"
    kept, low, high = (
        100 * metrics[f"accuracy_retention{end}"] for end in ("", "_ci_low", "_ci_high")
    )
    rows, lost, gained = (int(metrics[f"rows_{what}"]) for what in ("compared", "lost", "gained"))
    needed = (
        f"; one point takes {int(metrics['rows_needed']):,} rows"
        if "rows_needed" in metrics
        else ""
    )
    said = f"kept: {kept:.2f} % [{low:.2f}, {high:.2f}], p = {metrics['p_value']:.4f}"
    return f"{said}; {lost:,} rows lost and {gained:,} gained of {rows:,}{needed}"


def _shown(name: str, value: float) -> str:
    last = name.rpartition(".")[2]
    if last == "rows":
        return f"{int(value):,}"
    return f"{value:.2f}" if last in POINTS else f"{100 * value:.2f} %"


if __name__ == "__main__":
    sys.exit(main())
