"""Computes the metrics of a study's runs, as jobs and MLflow have them, and finds examples."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.metrics import comparison, intervals, significance, summary
from pipelines.metrics.comparison import HardSplit, PairedAnswers
from pipelines.metrics.intervals import Floats, Interval, Ints
from pipelines.metrics.summary import Failure
from pipelines.metrics.verdicts import BEST
from pipelines.report.runs import ReportRun, Study
from pipelines.report.table import Number, percent
from pipelines.results import answers

COLUMNS = (*summary.COLUMNS, "prediction", "new_tokens", "batch_rows")
RECORDED_METRICS = ("load_s", "prefill_tflops")
"""Metrics that only the job can measure; they are read from its record."""
MAX_EXAMPLES = 10
"""Rows in a table of examples: lost rows, slowest rows, ids of failed rows."""


class TypeChanges(NamedTuple):
    """Rows of one type of question in which a run scores lower than vanilla, and higher."""

    rows: int
    lost: int
    gained: int


class JudgeScores(NamedTuple):
    """A judge's verdicts on a run, written by `jobs/judge.py`: the paper's Acc and Score."""

    judge: str
    accuracy: Interval
    score: Interval  # 0 to 5
    accuracy_kept: Interval | None  # ratio to vanilla on the same rows, by the same judge
    score_kept: Interval | None


@dataclass(frozen=True)
class RunResult:
    run: ReportRun
    metrics: Mapping[str, float]
    failures: Sequence[Failure]
    changes: Mapping[str, TypeChanges]  # by type of question; empty without vanilla
    device_s: float | None  # prefill and decoding of all rows
    judge: JudgeScores | None
    holm_p_value: float | None = None  # corrected for all runs of the study


@dataclass(frozen=True)
class StudyResults:
    """Results of a study in the order of its runs, vanilla first."""

    study: Study
    results: Sequence[RunResult]
    hard: Mapping[str, Mapping[str, HardSplit]]
    """By budget and point: results on rows that the down-sampled run of the budget gets wrong."""
    lost: Sequence[Mapping[str, Any]]
    """Rows that vanilla got right and most runs wrong."""
    slowest: Sequence[Mapping[str, Any]]

    @property
    def vanilla(self) -> RunResult | None:
        return next((result for result in self.results if result.run.method == "vanilla"), None)

    def result_of(self, runs: Sequence[ReportRun]) -> RunResult | None:
        """The result of the run that belongs to this study."""
        ids = {run.id for run in runs}
        return next((result for result in self.results if result.run.id in ids), None)

    def accuracy(self, result: RunResult | None) -> Number | None:
        """The benchmark's headline for one run: a percentage, or points."""
        scale = self.study.benchmark.headline_max
        return percent(result.metrics, "accuracy", scale) if result else None


def measure(study: Study) -> StudyResults:
    """Reads each run once. Rows of one run, vanilla and the down-sampled runs are in memory."""
    bench, seed = study.benchmark, study.seed
    vanilla = _read(study.vanilla) if study.vanilla else None
    downsampled = {
        run.budget: _read(run)
        for run in study.runs
        if run.method == "downsample" and not run.options
    }
    lost: dict[str, list[tuple[str, str]]] = {}  # by row: point and prediction of each run
    hard: dict[str, dict[str, HardSplit]] = {}
    results, slowest = [], []
    for run in study.runs:
        is_vanilla = run is study.vanilla
        table = vanilla if is_vanilla and vanilla is not None else _read(run)
        reference = None if is_vanilla else vanilla
        recorded = {
            name: value for name, value in run.record.metrics.items() if name in RECORDED_METRICS
        }
        metrics = summary.summarise(table, reference, bench, recorded, seed)
        changes: dict[str, TypeChanges] = {}
        if reference is not None:
            pair = PairedAnswers.of(table, reference, bench, seed)
            changes = _changes(pair)
            for row in _take(table, pair.ours.ids[pair.lost].tolist()).to_pylist():
                lost.setdefault(row["row_id"], []).append((run.point, row["prediction"] or ""))
        slowest += _slowest(run, table)
        for budget in downsampled if is_vanilla else downsampled.keys() & {run.budget}:
            split = comparison.hard_split(table, downsampled[budget], bench, seed)
            if split is not None:
                hard.setdefault(budget, {})[run.point] = split
        failures = summary.failures([table], MAX_EXAMPLES)
        judge = judge_scores(run, study.vanilla, table, seed)
        results.append(RunResult(run, metrics, failures, changes, _seconds(table), judge))
    slowest.sort(key=lambda row: (-row["device_ms"], row["row_id"], row["point"]))
    examples = [] if vanilla is None else _lost_examples(vanilla, lost)
    return StudyResults(study, _with_holm(results), hard, examples, slowest[:MAX_EXAMPLES])


def _read(run: ReportRun) -> pa.Table:
    return answers.read(run.folder, COLUMNS)


def _take(table: pa.Table, row_ids: Sequence[str] | pa.ChunkedArray) -> pa.Table:
    """Rows of a table by their ids, in the order of the ids."""
    if not isinstance(row_ids, pa.ChunkedArray):
        row_ids = pa.array(row_ids, pa.string())
    return table.take(pc.index_in(row_ids, value_set=table["row_id"].combine_chunks()))


def _with_holm(results: Sequence[RunResult]) -> list[RunResult]:
    """Adds p-values that account for all comparisons of the study."""
    compared = [result for result in results if "p_value" in result.metrics]
    corrected = significance.holm([result.metrics["p_value"] for result in compared])
    by_run = {result.run.id: value for result, value in zip(compared, corrected, strict=True)}
    return [replace(result, holm_p_value=by_run.get(result.run.id)) for result in results]


def _lost_examples(
    vanilla: pa.Table, lost: Mapping[str, Sequence[tuple[str, str]]]
) -> list[dict[str, Any]]:
    """Rows that most runs lost, with the answers of vanilla and of the first of those runs."""
    row_ids = sorted(lost, key=lambda row_id: (-len(lost[row_id]), row_id))[:MAX_EXAMPLES]
    examples = []
    for row in _take(vanilla, row_ids).to_pylist():
        runs = lost[row["row_id"]]
        examples.append({**row, "lost_by": len(runs), "run_answer": ": ".join(runs[0])})
    return examples


def _changes(pair: PairedAnswers) -> dict[str, TypeChanges]:
    types, scored = pair.ours.types, pair.scored
    changes = {}
    for name, rows in Counter(types[scored].tolist()).items():
        lost, gained = (
            int((changed & scored & (types == name)).sum()) for changed in (pair.lost, pair.gained)
        )
        changes[name] = TypeChanges(rows, lost, gained)
    return changes


def _device_ms(table: pa.Table) -> Floats:
    """Prefill and decoding time of each row; NaN without a prefill time."""
    columns = (pc.fill_null(table[name], float("nan")) for name in ("prefill_ms", "decode_ms"))
    prefill, decode = (np.asarray(column, dtype=np.float64) for column in columns)
    return np.asarray(prefill + np.nan_to_num(decode))


def _seconds(table: pa.Table) -> float | None:
    times = _device_ms(table.filter(pc.equal(table["status"], "ok")))
    return float(np.nansum(times)) / 1000 if np.isfinite(times).any() else None


def _slowest(run: ReportRun, table: pa.Table) -> list[dict[str, Any]]:
    times = _device_ms(table)
    timed = np.flatnonzero(np.isfinite(times))
    slowest = timed[np.argsort(-times[timed], kind="stable")][:MAX_EXAMPLES]
    rows = table.take(pa.array(slowest)).to_pylist()
    return [
        {**row, "device_ms": float(times[index]), "point": run.point}
        for row, index in zip(rows, slowest, strict=True)
    ]


def judge_scores(
    run: ReportRun, vanilla: ReportRun | None, table: pa.Table, seed: int
) -> JudgeScores | None:
    """Scores of a run's answers (`table`) by the judge in its record; None without verdicts."""
    verdicts = _verdicts(run)
    if verdicts is None or not len(verdicts):
        return None
    reference = None
    if vanilla is not None and vanilla is not run and _judge_of(vanilla) == _judge_of(run):
        reference = _verdicts(vanilla)
    means: list[Interval] = []
    kept: list[Interval | None] = []
    for name, scale in (("correct", 1), ("score", BEST)):
        shares = _floats(verdicts[name]) / scale
        mean = intervals.mean(shares, _clusters(verdicts, table), seed)
        means.append(Interval(*(scale * part for part in mean)))
        kept.append(None)
        if reference is not None:
            row_ids = reference["row_id"].combine_chunks()
            ours = verdicts.filter(pc.is_in(verdicts["row_id"], value_set=row_ids))
            if len(ours):
                theirs = _take(reference, ours["row_id"])
                kept[-1] = intervals.retention(
                    _floats(ours[name]), _floats(theirs[name]), _clusters(ours, table), seed
                )
    return JudgeScores(str(run.record.tags["judge/name"]), *means, *kept)


def _judge_of(run: ReportRun) -> tuple[str | None, str | None]:
    tags = run.record.tags
    return tags.get("judge/name"), tags.get("judge/prompt_hash")


def _verdicts(run: ReportRun) -> pa.Table | None:
    """Verdicts of the judge that the record names, without those that ended in an error."""
    if "judge/name" not in run.record.tags:
        return None
    for name in run.folder.names():
        if name.startswith("verdicts-") and name.endswith(".arrow"):
            with run.folder.open(name) as file:
                table = pa.ipc.open_file(file).read_all()
            metadata = table.schema.metadata or {}
            tags = {key.decode(): value.decode() for key, value in metadata.items()}
            if (tags.get("judge/name"), tags.get("judge/prompt_hash")) == _judge_of(run):
                return table.filter(pc.is_null(table["error"])).sort_by("row_id")
    return None


def _clusters(verdicts: pa.Table, table: pa.Table) -> Ints:
    return intervals.clusters(_take(table, verdicts["row_id"])["media"])


def _floats(column: pa.ChunkedArray) -> Floats:
    return np.asarray(pc.cast(column, pa.float64()), dtype=np.float64)
