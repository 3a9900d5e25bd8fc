"""Scores of a stored run or of external answers, as the text and JSON that jobs/score.py prints."""

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.benchmarks import DEFAULT_SPLITS, benchmark, rescoring
from pipelines.benchmarks.base import Benchmark
from pipelines.metrics import summary
from pipelines.metrics.answer_metrics import as_floats
from pipelines.results import answers
from pipelines.results.run_record import RunRecord
from pipelines.results.storage import Folder
from pipelines.text import redacted

# Last parts of the names of metrics that are points, not shares.
POINTS = ("points", "perception", "cognition", "total")
INTERVAL = ("", "_ci_low", "_ci_high")  # ends of the names of a metric and its interval


@dataclass(frozen=True)
class ScoredAnswers:
    """Answers with the scores that their benchmark gives them now."""

    source: str
    benchmark: Benchmark
    split: str
    table: pa.Table
    counts: Mapping[str, int]
    notes: list[str]
    data: str | None  # the benchmark's files, which a submission may need
    against: pa.Table | None = None  # the run that they are compared with
    seed: int = 0  # of the bootstrap

    def lines(self) -> list[str]:
        """A report for people; its last line is JSON."""
        bench = self.benchmark
        metrics = summary.summarise(self.table, self.against, bench, seed=self.seed)
        lines = [f"{bench.name}, {self.split}: {self.source}", _headline(bench, metrics)]
        lines += [f"({bench.scoring_note})"] if bench.scoring_note else []
        lines += [_retention(metrics)] if self.against is not None else []
        own = [name for name in metrics if name.startswith(f"{bench.name}.") and "_ci_" not in name]
        width = max(map(len, own), default=0)
        lines += [f"  {name:<{width}}  {_value(name, metrics[name])}" for name in own]
        lines += [f"! {note}" for note in self.notes]
        names = {"benchmark": bench.name, "split": self.split, "source": self.source}
        result: dict[str, Any] = {**names, "headline": bench.headline}
        if "accuracy" in metrics:
            result["value"] = metrics["accuracy"] * bench.headline_max
        result |= {**self.counts, "metrics": metrics}
        return [*lines, json.dumps(result, ensure_ascii=False)]


def score_external(path: str, name: str, data: str, split: str | None = None) -> ScoredAnswers:
    """Score the external answers of a file, joined to the rows of a benchmark in `data`."""
    bench = benchmark(name)
    split = split or DEFAULT_SPLITS.get(name, "test")
    external = rescoring.read_answers(path)
    table, mismatches = rescoring.join_answers(bench, bench.load(data, split), external, split)
    notes = rescoring.describe_mismatches(mismatches)
    matched = len(table) - len(mismatches["missing"])
    if not matched:
        raise ValueError(f"no answer belongs to a row of {data}: {' '.join(notes)}")
    counts = {"rows": len(table), "matched": matched}
    counts |= {kind: len(ids) for kind, ids in mismatches.items()}
    return ScoredAnswers(path, bench, split, table, counts, notes, data)


def score_run(folder: Folder, against: Folder | None = None) -> ScoredAnswers:
    """Score a run again, and the run it is compared with, from their Parquet files alone."""
    stored, record = _read(folder)
    bench = benchmark(stored["benchmark"][0].as_py())
    table = rescoring.rescore(stored, bench)
    old, new = (as_floats(scores["score"]) for scores in (stored, table))
    changed = int((~np.isclose(old, new, rtol=0, atol=1e-9, equal_nan=True)).sum())
    notes = [f"{changed:,} rows have another score than when they were answered"] if changed else []
    # The rows of a run match by construction; what counts is whether each is there exactly once.
    unique = len(set(stored["row_id"].to_pylist()))
    wanted = max(unique, record.rows["wanted"] if record else 0)
    counts = {
        "rows": wanted,
        "matched": unique,
        "missing": wanted - unique,
        "duplicate": len(stored) - unique,
        "changed": changed,
    }
    compared = None
    if against is not None:
        theirs, their_record = _read(against)
        pairs = [(stored[name][0], theirs[name][0]) for name in ("benchmark", "split")]
        if record and their_record:
            pairs.append((record.identity.get("manifest"), their_record.identity.get("manifest")))
        if any(ours != other for ours, other in pairs):
            raise ValueError(
                f"{redacted(against.uri)} answers other questions; give a run of the same benchmark"
                " and data"
            )
        compared = rescoring.rescore(theirs, bench)
    config = record.config if record else {}
    return ScoredAnswers(
        redacted(folder.uri),
        bench,
        stored["split"][0].as_py(),
        table,
        counts,
        notes,
        config.get("data"),
        compared,
        int(config.get("seed") or 0),
    )


def _read(folder: Folder) -> tuple[pa.Table, RunRecord | None]:
    """The answers of a run, and its record if there is one."""
    stored = answers.read(folder)
    if not len(stored):
        raise ValueError(
            f"no answers in {redacted(folder.uri)}; give the folder of a run, as the job printed it"
        )
    with contextlib.suppress(FileNotFoundError):
        return stored, RunRecord.load(folder)
    return stored, None


def _headline(bench: Benchmark, metrics: Mapping[str, float]) -> str:
    if "accuracy" not in metrics:
        if "rows_scored" in metrics:
            return f"{bench.headline}, the headline, does not apply to any of these rows"
        return "no references to compare with: they are on the benchmark's server"
    points = bench.headline_max > 1
    scale, unit = (bench.headline_max, f" of {bench.headline_max:g}") if points else (100.0, " %")
    value, low, high = (scale * metrics[f"accuracy{end}"] for end in INTERVAL)
    return f"{bench.headline}: {value:.2f}{unit} [{low:.2f}, {high:.2f}], the headline"


def _retention(metrics: Mapping[str, float]) -> str:
    if "accuracy_retention" not in metrics:
        return "nothing to compare: --against scores zero on the rows that both runs answered"
    kept, low, high = (100 * metrics[f"accuracy_retention{end}"] for end in INTERVAL)
    rows, lost, gained = (int(metrics[f"rows_{name}"]) for name in ("compared", "lost", "gained"))
    line = f"kept: {kept:.2f} % [{low:.2f}, {high:.2f}], p = {metrics['p_value']:.4f}"
    line += f"; {lost:,} rows lost and {gained:,} gained of {rows:,}"
    if "rows_needed" in metrics:
        line += f"; detecting one point takes {int(metrics['rows_needed']):,} rows"
    return line


def _value(name: str, value: float) -> str:
    last = name.rpartition(".")[2]
    if last == "rows":
        return f"{int(value):,}"
    return f"{value:.2f}" if last in POINTS else f"{100 * value:.2f} %"
