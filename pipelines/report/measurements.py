"""What the answers of a study say: each run's metrics, as the job and MLflow have them, and the rows behind them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.metrics import comparison, significance, summary
from pipelines.metrics.comparison import HardSplit, PairedAnswers
from pipelines.metrics.summary import Failure
from pipelines.report import judge_scores
from pipelines.report.runs import ReportRun, Study
from pipelines.results import answers

COLUMNS = (*summary.COLUMNS, "prediction", "new_tokens", "batch_rows")
MAX_EXAMPLES = 10  # rows of a kind


class TypeChanges(NamedTuple):
    """Rows of a type that a run has lost against vanilla, and gained."""

    rows: int
    lost: int
    gained: int


@dataclass(frozen=True)
class RunResult:
    """A run, measured."""

    run: ReportRun
    metrics: Mapping[str, float]
    failures: tuple[Failure, ...]
    changed: Mapping[str, TypeChanges]  # by type of question; without vanilla none
    device_s: float | None  # prefill and decoding of all rows
    corrected: float | None = None  # p-value among all of its study's
    judged: judge_scores.Judged | None = None


@dataclass
class StudyResults:
    """A study, measured: results in the order of its runs, vanilla first."""

    study: Study
    results: list[RunResult]
    hard: dict[
        str, dict[str, HardSplit]
    ]  # by budget and point: on the rows that the down-sampled model gets wrong
    lost: list[dict[str, Any]]  # rows that most runs got wrong and vanilla right
    slowest: list[dict[str, Any]]

    @property
    def vanilla(self) -> RunResult | None:
        return next((result for result in self.results if result.run.method == "vanilla"), None)

    def of(self, runs: Sequence[ReportRun]) -> RunResult | None:
        """The result of that of these runs which is one of the study's."""
        ids = {run.id for run in runs}
        return next((result for result in self.results if result.run.id in ids), None)


def measure(study: Study) -> StudyResults:
    """Reads each run once; of one at a time, beside vanilla and the down-sampled ones, all rows are in memory."""
    bench, seed = study.benchmark, study.seed
    base = _read(study.vanilla) if study.vanilla else None
    coarse = {
        run.budget: _read(run)
        for run in study.runs
        if run.method == "downsample" and not run.options
    }
    lost: Counter[str] = Counter()
    wrong: dict[str, tuple[str, str]] = {}
    hard: dict[str, dict[str, HardSplit]] = {}
    results, slowest = [], []
    for run in study.runs:
        table = base if run is study.vanilla and base is not None else _read(run)
        against = base if run is not study.vanilla else None
        taken = {
            key: value
            for key, value in run.record.metrics.items()
            if key in ("load_s", "prefill_tflops")
        }
        metrics = summary.summarise(table, against, bench, taken, seed)
        pair = PairedAnswers.of(table, against, bench, seed) if against is not None else None
        for row_id, said in _lost(pair, table) if pair else ():
            lost[row_id] += 1
            wrong.setdefault(row_id, (run.point, said))
        slowest += _slowest(run, table)
        for budget in coarse if run is study.vanilla else coarse.keys() & {run.budget}:
            found = comparison.hard_split(table, coarse[budget], bench, seed)
            if found is not None:
                hard.setdefault(budget, {})[run.point] = found
        results.append(
            RunResult(
                run,
                metrics,
                tuple(summary.failures([table], MAX_EXAMPLES)),
                _changed(pair) if pair else {},
                _seconds(table),
                judged=judge_scores.judge_scores(run, study.vanilla, table, seed),
            )
        )
    slowest.sort(key=lambda row: (-row["device_ms"], row["row_id"], row["point"]))
    worst = _worst(base, lost, wrong) if base is not None else []
    return StudyResults(study, _corrected(results), hard, worst, slowest[:MAX_EXAMPLES])


def _read(run: ReportRun) -> pa.Table:
    return answers.read(run.folder, COLUMNS)


def _corrected(results: list[RunResult]) -> list[RunResult]:
    """With p-values that count all comparisons of the study."""
    places = [place for place, result in enumerate(results) if "p_value" in result.metrics]
    holm = significance.holm([results[place].metrics["p_value"] for place in places])
    found = list(results)
    for place, value in zip(places, holm, strict=True):
        found[place] = replace(results[place], corrected=value)
    return found


def _lost(pair: PairedAnswers, table: pa.Table) -> list[tuple[str, str]]:
    ids = pair.ours.ids[pair.lost]
    said = table.take(
        pc.index_in(pa.array(ids, pa.string()), value_set=table["row_id"].combine_chunks())
    )
    return list(
        zip(ids.tolist(), (text or "" for text in said["prediction"].to_pylist()), strict=True)
    )


def _worst(
    base: pa.Table, lost: Counter[str], wrong: Mapping[str, tuple[str, str]]
) -> list[dict[str, Any]]:
    """The rows that most runs have lost, with what vanilla and one of them said."""
    ids = sorted(lost, key=lambda row_id: (-lost[row_id], row_id))[:MAX_EXAMPLES]
    rows = base.take(
        pc.index_in(pa.array(ids, pa.string()), value_set=base["row_id"].combine_chunks())
    ).to_pylist()
    return [
        {
            **row,
            "lost_by": lost[row["row_id"]],
            "point": wrong[row["row_id"]][0],
            "said": wrong[row["row_id"]][1],
        }
        for row in rows
    ]


def _changed(pair: PairedAnswers) -> dict[str, TypeChanges]:
    found = {}
    for kind in sorted(set(pair.ours.types[pair.scored])):
        mine = pair.scored & (pair.ours.types == kind)
        found[str(kind)] = TypeChanges(
            int(mine.sum()), int((pair.lost & mine).sum()), int((pair.gained & mine).sum())
        )
    return found


def _device(table: pa.Table) -> np.ndarray:
    parts = (pc.fill_null(table[name], float("nan")) for name in ("prefill_ms", "decode_ms"))
    prefill, decode = (np.asarray(part, dtype=np.float64) for part in parts)
    return np.asarray(prefill + np.nan_to_num(decode))


def _seconds(table: pa.Table) -> float | None:
    took = _device(table.filter(pc.equal(table["status"], "ok")))
    return float(np.nansum(took)) / 1000 if np.isfinite(took).any() else None


def _slowest(run: ReportRun, table: pa.Table) -> list[dict[str, Any]]:
    took = _device(table)
    known = np.flatnonzero(np.isfinite(took))
    places = known[np.argsort(-took[known], kind="stable")][:MAX_EXAMPLES]
    rows = table.take(pa.array(places)).to_pylist()
    return [
        {**row, "device_ms": float(took[at]), "point": run.point}
        for row, at in zip(rows, places, strict=True)
    ]
