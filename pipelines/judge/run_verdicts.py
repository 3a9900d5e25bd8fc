"""The answers of one run before a judge: verdicts beside them on disk, and what they come to in the run's record.

What counts: rows that ended in an error and rows without a correct answer are not judged; of the judged ones, accuracy
is yes / (yes + no) and the score their mean, 0 to 5, both with 95 % intervals over media (pipelines.metrics.statistics). Rows
that the judge gave no verdict on are counted and in neither.
"""

from __future__ import annotations

import io
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.metrics import statistics
from pipelines.metrics.statistics import Interval
from pipelines.metrics.verdicts import BEST, Item, Judge, Unavailable, Verdict
from pipelines.results import answers
from pipelines.results.lock import Lock
from pipelines.results.run_record import RunRecord
from pipelines.results.storage import Folder
from pipelines.text import redacted

HOPELESS = 20  # items in a row without a verdict, after which the rest is not tried
_SAY = 10.0  # seconds between two lines about the progress
_READ = ("row_id", "media", "question", "reference", "prediction", "status")
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
    """What a judge makes of one run."""

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
        """By the names they have in MLflow."""
        found: dict[str, float] = {"rows": self.rows, "unjudged": self.unjudged}
        found |= {f"unjudged_{kind}": count for kind, count in sorted(self.errors.items())}
        for name, interval in (("accuracy", self.accuracy), ("score", self.score)):
            if interval is not None:
                found |= {
                    name: interval.value,
                    f"{name}_ci_low": interval.low,
                    f"{name}_ci_high": interval.high,
                }
        return {f"{self.label}/{name}": float(value) for name, value in found.items()}

    @property
    def tags(self) -> dict[str, str]:
        found = {"name": self.judge, "prompt_hash": self.prompt_hash, "version": self.version}
        return {f"{self.label}/{name}": text for name, text in found.items()}


def judge_run(folder: Folder, judge: Judge, say: Callable[[str], None] | None = None) -> Outcome:
    """Judge a run's answers, write the verdicts beside them and the numbers into its record.

    Nothing of the run is touched before all is judged; what an interrupted judging has learned is in the judge's cache.
    """
    with Lock(folder):
        answers.compact(folder)
        table = answers.read(folder, _READ)
        good = table.filter(pc.equal(table["status"], "ok"))
        asked = good.filter(pc.greater(pc.coalesce(pc.list_value_length(good["reference"]), 0), 0))
        verdicts = list(_judged(asked, judge, say))
        outcome = _outcome(asked, verdicts, judge)
        outcome.unanswered, outcome.unreferenced = len(table) - len(good), len(good) - len(asked)
        outcome.file = _write(folder, asked, verdicts, outcome)
        _note(folder, outcome)
    return outcome


def _items(table: pa.Table) -> Iterator[Item]:
    for batch in table.select(["question", "reference", "prediction"]).to_batches(
        max_chunksize=1000
    ):
        for row in batch.to_pylist():
            yield Item(row["question"] or "", tuple(row["reference"]), row["prediction"] or "")


def _judged(table: pa.Table, judge: Judge, say: Callable[[str], None] | None) -> Iterator[Verdict]:
    """The verdicts, unless the judge fails with everything."""
    barren, failed, began = 0, 0, time.monotonic()
    told = began
    for done, verdict in enumerate(judge.judge(_items(table)), 1):
        barren = barren + 1 if verdict.error else 0
        failed += bool(verdict.error)
        if barren >= HOPELESS:
            raise Unavailable(
                f"{judge.name} gave no verdict {barren} times in a row; the last time {verdict.error}"
            )
        if say and time.monotonic() - told > _SAY:
            told = time.monotonic()
            say(
                f"judged {done:,} of {len(table):,}, {done / (told - began):.1f} a second, {failed} without a verdict"
            )
        yield verdict


def _outcome(table: pa.Table, verdicts: list[Verdict], judge: Judge) -> Outcome:
    outcome = Outcome(judge.name, judge.label, judge.prompt_hash, judge.version)
    judged = np.array([verdict.error is None for verdict in verdicts], dtype=bool)
    outcome.rows, outcome.unjudged = int(judged.sum()), int((~judged).sum())
    for error in (verdict.error for verdict in verdicts if verdict.error):
        outcome.errors[re.sub(r"\W+", "_", error.partition(":")[0])] += 1
        outcome.example = outcome.example or error
    if outcome.rows:
        cluster = statistics.clusters(table["media"].filter(pa.array(judged)))
        right = np.array(
            [verdict.correct for verdict in verdicts if verdict.error is None], dtype=np.float64
        )
        score = np.array(
            [verdict.score for verdict in verdicts if verdict.error is None], dtype=np.float64
        )
        outcome.accuracy = statistics.mean(right, cluster)
        outcome.score = Interval(*(BEST * part for part in statistics.mean(score / BEST, cluster)))
    return outcome


def _write(folder: Folder, table: pa.Table, verdicts: list[Verdict], outcome: Outcome) -> str:
    """One Arrow file a judge, over that of the last time. Not Parquet: of that, there are only answers in a run."""
    columns = {name: [getattr(verdict, name) for verdict in verdicts] for name in SCHEMA.names[1:]}
    kept = pa.table(
        {"row_id": table["row_id"], **columns}, schema=SCHEMA.with_metadata(outcome.tags)
    )
    name = re.sub(
        r"[^A-Za-z0-9_.-]+", "-", f"verdicts-{outcome.judge}-{outcome.prompt_hash}"
    ).removesuffix("-none")
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, kept.schema) as file:
        file.write_table(kept)
    folder.write(f"{name}.arrow", sink.getvalue())
    return f"{name}.arrow"


def _note(folder: Folder, outcome: Outcome) -> None:
    """The numbers in the run's record, in the place of an earlier judging's; answers without a record stay without."""
    try:
        record = RunRecord.load(folder)
    except FileNotFoundError:
        return
    gone = {name: 0.0 for name in record.metrics if name.startswith(f"{outcome.label}/unjudged")}
    before = {
        name: value
        for name, value in record.metrics.items()
        if not name.startswith(f"{outcome.label}/")
    }
    record.metrics = {**before, **outcome.metrics}
    record.tags = {**record.tags, **outcome.tags}
    # MLflow shows a metric's latest value, and the final ones have the time at which the run ended
    record.log(0, {**gone, **outcome.metrics}, force=True)
    record.save(folder)


def line(name: str, outcome: Outcome) -> str:
    """What a person reads of it."""
    what = "" if outcome.label == "judge" else "  (a metric, NOT the judge)"
    lines = [f"{name}: {outcome.judge}{what}"]
    if outcome.accuracy and outcome.score:
        share = [100 * part for part in outcome.accuracy]
        lines += [
            f"  accuracy  {share[0]:.1f} % [{share[1]:.1f}, {share[2]:.1f}]",
            f"  score     {outcome.score.value:.2f} of {BEST} [{outcome.score.low:.2f}, {outcome.score.high:.2f}]",
        ]
    kinds = ", ".join(f"{count} {kind}" for kind, count in outcome.errors.most_common())
    lines += [
        f"  rows      {outcome.rows} judged, {outcome.unjudged} unjudged{f' ({kinds})' if kinds else ''},"
        f" {outcome.unanswered} without an answer, {outcome.unreferenced} without a correct answer",
        f"  prompt    {outcome.prompt_hash}, version {outcome.version}",
        f"  verdicts  {outcome.file}",
    ]
    if outcome.example:
        lines.append(f"  e.g.      {outcome.example[:200]}")
    return "\n".join(lines)


def runs(uris: list[str]) -> list[Folder]:
    """The folders, if all of them hold answers: found before anything is paid for."""
    folders = [Folder.of(uri) for uri in uris]
    for folder in folders:
        if not answers.parts_of(folder):
            raise ValueError(
                f"{redacted(folder.uri)} holds no answers; give the folders of runs, in which the *.parquet files are,"
                " such as results/msvd-*"
            )
    return folders
