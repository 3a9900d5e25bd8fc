"""The judge's verdicts on a run's open answers, where `jobs/judge.py` has written some: the paper's Acc and Score."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.metrics import intervals
from pipelines.metrics.intervals import Interval
from pipelines.metrics.verdicts import BEST
from pipelines.report.runs import ReportRun

COLUMNS = ("correct", "score")


class JudgeScores(NamedTuple):
    judge: str
    accuracy: Interval
    score: Interval
    accuracy_kept: Interval | None  # of vanilla's, on the same rows, by the same judge
    score_kept: Interval | None


def judge_scores(
    run: ReportRun, vanilla: ReportRun | None, table: pa.Table, seed: int
) -> JudgeScores | None:
    """None where no judge has been asked."""
    mine = _verdicts(run)
    if mine is None or not len(mine):
        return None
    base = _verdicts(vanilla) if vanilla is not None and vanilla is not run else None
    same = base is not None and _asked(vanilla) == _asked(run)
    found: dict[str, Interval] = {}
    kept: dict[str, Interval | None] = dict.fromkeys(COLUMNS)
    cluster = _clusters(mine, table)
    for name in COLUMNS:
        scale = BEST if name == "score" else 1
        values = _floats(mine[name]) / scale
        found[name] = Interval(*(scale * part for part in intervals.mean(values, cluster, seed)))
        if base is not None and same:
            ours = mine.filter(pc.is_in(mine["row_id"], value_set=base["row_id"].combine_chunks()))
            if not len(ours):
                continue
            theirs = base.take(
                pc.index_in(ours["row_id"], value_set=base["row_id"].combine_chunks())
            )
            kept[name] = intervals.retention(
                _floats(ours[name]), _floats(theirs[name]), _clusters(ours, table), seed
            )
    return JudgeScores(
        str(run.record.tags["judge/name"]),
        found["correct"],
        found["score"],
        kept["correct"],
        kept["score"],
    )


def _asked(run: ReportRun | None) -> tuple[str | None, str | None]:
    tags = run.record.tags if run else {}
    return tags.get("judge/name"), tags.get("judge/prompt_hash")


def _verdicts(run: ReportRun) -> pa.Table | None:
    """Those of the judge that the run's record names, where they are verdicts."""
    if "judge/name" not in run.record.tags:
        return None
    for name in run.folder.names():
        if name.startswith("verdicts-") and name.endswith(".arrow"):
            with run.folder.open(name) as file:
                table = pa.ipc.open_file(file).read_all()
            tags = {
                key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()
            }
            if (tags.get("judge/name"), tags.get("judge/prompt_hash")) == _asked(run):
                return table.filter(pc.is_null(table["error"])).sort_by("row_id")
    return None


def _clusters(verdicts: pa.Table, answers: pa.Table) -> intervals.Ints:
    media = answers["media"].take(
        pc.index_in(verdicts["row_id"], value_set=answers["row_id"].combine_chunks())
    )
    return intervals.clusters(media)


def _floats(column: pa.ChunkedArray) -> intervals.Floats:
    return np.asarray(pc.cast(column, pa.float64()), dtype=np.float64)
