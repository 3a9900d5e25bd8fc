"""Judges the answers of one run: writes verdicts beside them and metrics into the run's record.

Rows that ended in an error and rows without a correct answer are not judged. Accuracy is
yes / (yes + no) over the judged rows and the score their mean, 0 to 5, both with 95 % intervals
over media (pipelines.metrics.intervals). Rows without a verdict are counted, but are in neither.
"""

import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.metrics import intervals
from pipelines.metrics.intervals import Interval, as_metrics
from pipelines.metrics.verdicts import BEST, Item, Judge, Unavailable, Verdict
from pipelines.results import answers
from pipelines.results.lock import Lock
from pipelines.results.run_record import RunRecord
from pipelines.results.storage import Folder
from pipelines.text import redacted

MAX_CONSECUTIVE_FAILURES = 20  # items without a verdict, after which the judging is given up
PROGRESS_INTERVAL_S = 10.0
_COLUMNS = ("row_id", "media", "question", "reference", "prediction", "status")
SCHEMA = pa.schema(
    [
        ("row_id", pa.string()),  # of the answer
        ("correct", pa.bool_()),
        ("score", pa.int8()),  # 0 to 5
        ("reply", pa.string()),  # the judge's, word for word
        ("error", pa.string()),  # why there is no verdict
    ]
)


@dataclass
class Outcome:
    """A judge's results for one run."""

    judge: str
    label: str
    prompt_hash: str
    version: str
    rows: int = 0  # judged
    unjudged: int = 0  # the judge gave no verdict
    unanswered: int = 0  # the answer is an error
    unreferenced: int = 0  # there is no correct answer
    accuracy: Interval | None = None
    score: Interval | None = None
    errors: Counter[str] = field(default_factory=Counter)  # by kind: malformed, unreachable, ...
    example: str = ""  # of an error
    file: str = ""

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics by their names in MLflow."""
        metrics: dict[str, float] = {"rows": self.rows, "unjudged": self.unjudged}
        metrics |= {f"unjudged_{kind}": count for kind, count in sorted(self.errors.items())}
        if self.accuracy and self.score:
            metrics |= as_metrics("accuracy", self.accuracy) | as_metrics("score", self.score)
        return {f"{self.label}/{name}": float(value) for name, value in metrics.items()}

    @property
    def tags(self) -> dict[str, str]:
        tags = {"name": self.judge, "prompt_hash": self.prompt_hash, "version": self.version}
        return {f"{self.label}/{name}": text for name, text in tags.items()}


def judge_run(folder: Folder, judge: Judge, say: Callable[[str], None] | None = None) -> Outcome:
    """Judge a run's answers, write the verdicts beside them and the metrics into its record.

    The run is changed only after all rows are judged. Replies of an interrupted judging are in
    the judge's cache.
    """
    with Lock(folder):
        answers.compact(folder)
        table = answers.read(folder, _COLUMNS)
        answered = table.filter(pc.equal(table["status"], "ok"))
        references = pc.coalesce(pc.list_value_length(answered["reference"]), 0)
        judged = answered.filter(pc.greater(references, 0))
        verdicts = list(_verdicts(judged, judge, say))
        outcome = _outcome(judged, verdicts, judge)
        outcome.unanswered = len(table) - len(answered)
        outcome.unreferenced = len(answered) - len(judged)
        outcome.file = _write(folder, judged, verdicts, outcome)
        _update_record(folder, outcome)
    return outcome


def _verdicts(
    table: pa.Table, judge: Judge, say: Callable[[str], None] | None
) -> Iterator[Verdict]:
    """The verdicts; raises Unavailable if the judge fails on many items in a row."""
    items = [
        Item(row["question"] or "", tuple(row["reference"]), row["prediction"] or "")
        for row in table.select(["question", "reference", "prediction"]).to_pylist()
    ]
    consecutive, failed = 0, 0
    start = reported = time.monotonic()
    for done, verdict in enumerate(judge.judge(items), 1):
        consecutive = consecutive + 1 if verdict.error else 0
        failed += bool(verdict.error)
        if consecutive >= MAX_CONSECUTIVE_FAILURES:
            raise Unavailable(
                f"{judge.name} gave no verdict {consecutive} times in a row; the last time"
                f" {verdict.error}"
            )
        if say and time.monotonic() - reported > PROGRESS_INTERVAL_S:
            reported = time.monotonic()
            say(
                f"judged {done:,} of {len(items):,}, {done / (reported - start):.1f}/s,"
                f" {failed} without a verdict"
            )
        yield verdict


def _outcome(table: pa.Table, verdicts: list[Verdict], judge: Judge) -> Outcome:
    outcome = Outcome(judge.name, judge.label, judge.prompt_hash, judge.version)
    errors = [verdict.error for verdict in verdicts if verdict.error]
    outcome.unjudged, outcome.rows = len(errors), len(verdicts) - len(errors)
    outcome.errors.update(re.sub(r"\W+", "_", error.partition(":")[0]) for error in errors)
    outcome.example = errors[0] if errors else ""
    if outcome.rows:
        judged = [verdict.error is None for verdict in verdicts]
        cluster = intervals.clusters(table["media"].filter(pa.array(judged)))
        decided = [(v.correct, v.score) for v in verdicts if v.error is None]
        correct, score = np.array(decided, dtype=np.float64).T
        outcome.accuracy = intervals.mean(correct, cluster)
        outcome.score = Interval(*(BEST * bound for bound in intervals.mean(score / BEST, cluster)))
    return outcome


def _write(folder: Folder, table: pa.Table, verdicts: list[Verdict], outcome: Outcome) -> str:
    """Write one Arrow file per judge, over the last one; returns its name.

    Not Parquet: all Parquet files in a run's folder are answers.
    """
    schema = SCHEMA.with_metadata(outcome.tags)
    columns = {name: [getattr(verdict, name) for verdict in verdicts] for name in Verdict._fields}
    stored = pa.table({"row_id": table["row_id"], **columns}, schema=schema)
    judge = f"verdicts-{outcome.judge}-{outcome.prompt_hash}".removesuffix("-none")
    name = f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', judge)}.arrow"
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema) as file:
        file.write_table(stored)
    folder.write(name, sink.getvalue().to_pybytes())
    return name


def _update_record(folder: Folder, outcome: Outcome) -> None:
    """Replace the metrics of an earlier judging in the run's record, if there is a record."""
    try:
        record = RunRecord.load(folder)
    except FileNotFoundError:
        return
    prefix = f"{outcome.label}/"
    obsolete = {name: 0.0 for name in record.metrics if name.startswith(f"{prefix}unjudged")}
    others = {name: v for name, v in record.metrics.items() if not name.startswith(prefix)}
    record.metrics = {**others, **outcome.metrics}
    record.tags = {**record.tags, **outcome.tags}
    # MLflow shows a metric's latest value, and the final ones have the time at which the run ended
    record.log(0, {**obsolete, **outcome.metrics}, force=True)
    record.save(folder)


def summarize(name: str, outcome: Outcome) -> str:
    """A few lines for a person to read."""
    accuracy, score = outcome.accuracy, outcome.score
    kinds = ", ".join(f"{count} {kind}" for kind, count in outcome.errors.most_common())
    warning = "" if outcome.label == "judge" else "  (a metric, NOT the judge)"
    lines = [f"{name}: {outcome.judge}{warning}"]
    if accuracy and score:
        value, low, high = (100 * bound for bound in accuracy)
        lines += [
            f"  accuracy  {value:.1f} % [{low:.1f}, {high:.1f}]",
            f"  score     {score.value:.2f} of {BEST} [{score.low:.2f}, {score.high:.2f}]",
        ]
    lines += [
        f"  rows      {outcome.rows} judged, {outcome.unjudged} unjudged"
        f"{f' ({kinds})' if kinds else ''}, {outcome.unanswered} without an answer,"
        f" {outcome.unreferenced} without a correct answer",
        f"  prompt    {outcome.prompt_hash}, version {outcome.version}",
        f"  verdicts  {outcome.file}",
    ]
    if outcome.example:
        lines.append(f"  e.g.      {outcome.example[:200]}")
    return "\n".join(lines)


def run_folders(uris: list[str]) -> list[Folder]:
    """The folders; raises a ValueError, before anything is paid for, if one has no answers."""
    folders = [Folder.of(uri) for uri in uris]
    for folder in folders:
        if not answers.answer_files(folder):
            raise ValueError(
                f"{redacted(folder.uri)} holds no answers; give the folders of runs, in which the"
                " *.parquet files are, such as results/msvd-*"
            )
    return folders
