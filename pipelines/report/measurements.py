"""Computes the metrics of a study's runs, as jobs and MLflow have them, and finds examples."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.metrics import comparison, intervals, significance, summary
from pipelines.metrics.answer_metrics import as_floats
from pipelines.metrics.comparison import PairedAnswers
from pipelines.metrics.intervals import Ints
from pipelines.metrics.verdicts import BEST
from pipelines.report.runs import ReportRun, Result, Study
from pipelines.results import answers

COLUMNS = (*summary.COLUMNS, "prediction", "new_tokens", "batch_rows")
RECORDED = "prefill_tflops"
"""A metric that only the job can measure; it is read from its record."""
MAX_EXAMPLES = 10
"""Rows in a table of examples: lost rows, slowest rows, ids of failed rows."""


def measure(study: Study) -> Study:
    """The study with its results. Each run is read once.

    Rows of one run, vanilla and the down-sampled runs are in memory. Names of the metrics are those
    of `summary.summarise`, and:

    headline                     accuracy in percent, or in points
    lost.TYPE, gained.TYPE       rows with a lower or higher score than vanilla
    judge_accuracy, judge_score  the paper's Acc (in percent) and Score, and their `_retention`
    visible_points, holm_p_value, device_s, speed_up, prefill_speed_up
    """
    vanilla = _read(study.vanilla) if study.vanilla else None
    downsampled = {
        run.point.budget: _read(run)
        for run in study.runs
        if run.point.method == "downsample" and not run.point.options
    }
    results: list[Result] = []
    hard: list[Result] = []
    slowest: list[dict[str, Any]] = []
    errors: list[dict[str, Any]] = []
    lost: dict[str, list[str]] = defaultdict(list)  # by row: answers of the runs that lost it
    types: set[str] = set()
    for run in study.runs:
        is_vanilla = run is study.vanilla
        table = vanilla if is_vanilla and vanilla is not None else _read(run)
        reference = None if is_vanilla else vanilla
        metrics = _metrics(study, run, table, reference)
        if reference is not None:
            pair = PairedAnswers.of(table, reference, study.benchmark, study.seed)
            types.update(pair.ours.types[pair.scored])
            metrics |= _changes(pair)
            for row in _take(table, pa.array(pair.ours.ids[pair.lost], pa.string())).to_pylist():
                lost[row["row_id"]].append(f"{run.name}: {row['prediction'] or ''}")
        for budget in downsampled if is_vanilla else downsampled.keys() & {run.point.budget}:
            split = comparison.hard_split(table, downsampled[budget], study.benchmark, study.seed)
            if split is not None:
                accuracy = intervals.as_metrics("hard_accuracy", split.accuracy)
                values = {**metrics, **accuracy, "hard_rows": split.rows}
                hard.append(Result(run.point._replace(budget=budget), values))
        results.append(Result(run.point, metrics))
        slowest += _slowest(run, table)
        errors += _errors(run, table)
    _compare(results)
    slowest.sort(key=lambda row: (-row["device_ms"], row["row_id"], row["run"]))
    return replace(
        study,
        results=results,
        types=sorted(types),
        hard=hard,
        lost=[] if vanilla is None else list(_lost(vanilla, lost, len(results) - 1)),
        slowest=slowest[:MAX_EXAMPLES],
        errors=errors,
    )


def _metrics(
    study: Study, run: ReportRun, table: pa.Table, vanilla: pa.Table | None
) -> dict[str, float]:
    bench = study.benchmark
    recorded = {name: value for name, value in run.record.metrics.items() if name == RECORDED}
    metrics = summary.summarise(table, vanilla, bench, recorded, study.seed)
    scale = bench.headline_max if bench.headline_max > 1 else 100
    for end in ("", "_ci_low", "_ci_high"):
        if f"accuracy{end}" in metrics:
            metrics[f"headline{end}"] = scale * metrics[f"accuracy{end}"]
    if "rows_needed" in metrics:  # for one point; it grows with the square of the precision
        metrics["visible_points"] = (metrics["rows_needed"] / metrics["rows_compared"]) ** 0.5
    seconds = pc.sum(_device_ms(table.filter(pc.equal(table["status"], "ok")))).as_py()
    if seconds is not None:
        metrics["device_s"] = seconds / 1000
    return metrics | judge_metrics(run, study.vanilla, table, study.seed)


def _read(run: ReportRun) -> pa.Table:
    return answers.read(run.folder, COLUMNS)


def _take(table: pa.Table, row_ids: pa.Array | pa.ChunkedArray) -> pa.Table:
    """Rows of a table by their ids, in the order of the ids."""
    return table.take(pc.index_in(row_ids, value_set=table["row_id"].combine_chunks()))


def _compare(results: Sequence[Result]) -> None:
    """Adds metrics that depend on other runs, where vanilla is the first."""
    tested = [result.metrics for result in results if "p_value" in result.metrics]
    corrected = significance.holm([metrics["p_value"] for metrics in tested])
    for metrics, p_value in zip(tested, corrected, strict=True):
        metrics["holm_p_value"] = p_value
    if results[0].point.method == "vanilla":
        base = results[0].metrics
        base |= {"accuracy_retention": 1.0} if "accuracy" in base else {}
        for _, metrics, _ in results:
            if metrics.get("samples_per_s") and base.get("samples_per_s"):
                metrics["speed_up"] = metrics["samples_per_s"] / base["samples_per_s"]
            if metrics.get("prefill_ms_p50") and base.get("prefill_ms_p50"):
                metrics["prefill_speed_up"] = base["prefill_ms_p50"] / metrics["prefill_ms_p50"]


def _changes(pair: PairedAnswers) -> dict[str, float]:
    types = pair.ours.types
    return {
        f"{name}.{kind}": int((changed & pair.scored & (types == kind)).sum())
        for name, changed in (("lost", pair.lost), ("gained", pair.gained))
        for kind in set(types[pair.scored])
    }


def _lost(
    vanilla: pa.Table, lost: Mapping[str, Sequence[str]], runs: int
) -> Iterator[dict[str, Any]]:
    """Rows that most runs lost, with the answers of vanilla and of the first of those runs."""
    row_ids = sorted(lost, key=lambda row_id: (-len(lost[row_id]), row_id))[:MAX_EXAMPLES]
    for row in _take(vanilla, pa.array(row_ids, pa.string())).to_pylist():
        losers = lost[row["row_id"]]
        reference = " | ".join(row["reference"] or [])
        lost_by = f"{len(losers)} of {runs}"
        yield {**row, "reference": reference, "lost_by": lost_by, "answer": losers[0]}


def _device_ms(table: pa.Table) -> pa.ChunkedArray:
    """Prefill and decoding time of each row; null without a prefill time."""
    prefill, decode = (pc.cast(table[name], pa.float64()) for name in ("prefill_ms", "decode_ms"))
    return pc.add(prefill, pc.fill_null(decode, 0.0))


def _slowest(run: ReportRun, table: pa.Table) -> list[dict[str, Any]]:
    timed = table.append_column("device_ms", _device_ms(table))
    timed = timed.filter(pc.is_valid(timed["device_ms"]))
    timed = timed.sort_by([("device_ms", "descending"), ("row_id", "ascending")])
    return [{**row, "run": run.name} for row in timed.slice(0, MAX_EXAMPLES).to_pylist()]


def _errors(run: ReportRun, table: pa.Table) -> Iterator[dict[str, Any]]:
    for failure in summary.failures([table], MAX_EXAMPLES):
        more = ["..."] if failure.rows > len(failure.row_ids) else []
        row_ids = ", ".join([*failure.row_ids, *more])
        yield {**failure._asdict(), "row_ids": row_ids, "run": run.name}


def judge_metrics(
    run: ReportRun, vanilla: ReportRun | None, table: pa.Table, seed: int
) -> dict[str, float]:
    """Metrics by the judge in the run's record; none without verdicts of `jobs/judge.py`.

    table: the run's answers
    """
    verdicts = _verdicts(run)
    if verdicts is None or not len(verdicts):
        return {}
    reference = None
    if vanilla is not None and _judge_of(vanilla) == _judge_of(run):
        reference = _verdicts(vanilla)
    metrics: dict[str, float] = {}
    for name, column, largest, shown in (
        ("judge_accuracy", "correct", 1, 100),
        ("judge_score", "score", BEST, BEST),
    ):
        shares = as_floats(verdicts[column]) / largest
        mean = intervals.mean(shares, _clusters(verdicts, table), seed)
        metrics |= intervals.as_metrics(name, intervals.Interval(*(shown * x for x in mean)))
        if vanilla is run:
            metrics[f"{name}_retention"] = 1.0
        elif reference is not None:
            row_ids = reference["row_id"].combine_chunks()
            ours = verdicts.filter(pc.is_in(verdicts["row_id"], value_set=row_ids))
            if len(ours):
                theirs = as_floats(_take(reference, ours["row_id"])[column])
                cluster = _clusters(ours, table)
                kept = intervals.retention(as_floats(ours[column]), theirs, cluster, seed)
                metrics |= intervals.as_metrics(f"{name}_retention", kept) if kept else {}
    return metrics


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
