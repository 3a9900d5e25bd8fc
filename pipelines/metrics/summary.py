"""Summary of a run's answers: the metrics of one point, its errors, and the table of a job.

Rules for all numbers:

- Accuracy is the benchmark's headline as a share of its maximum. For most benchmarks it is the mean
  of `score`, or of `correct` where a row has no score, over the rows that were answered and have a
  reference. Rows that ended in an error are not wrong answers; they are counted separately. All
  other metrics of the official scorer are reported beside it.
- Intervals are 95 % and over media (pipelines.metrics.intervals). Numbers relative to the
  unmodified model are paired: the same rows of both runs (pipelines.metrics.comparison).
- Speed is that of the device: rows / the time that one actor spent on prefill and decoding. It does
  not include start-up, reading and other methods in the same actor; `wall_s` includes everything.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.metrics import answer_metrics, intervals
from pipelines.metrics.answer_metrics import AnswerArrays, Metric, Scorer, as_floats
from pipelines.metrics.comparison import PairedAnswers
from pipelines.metrics.intervals import Interval, Ints
from pipelines.text import redacted

# Columns that `summarise` reads, for callers that do not want to load more.
COLUMNS = (
    *(*answer_metrics.COLUMNS, "error", "budget", "visual_tokens_in"),
    *("prefill_ms", "decode_ms", "compress_ms", "peak_memory_bytes"),
)
ERROR_COLUMNS = ("row_id", "status", "error")  # that `failures` reads
# Columns of the sample that MLflow shows.
SAMPLE_COLUMNS = (
    *("row_id", "type", "media", "question", "reference", "prediction"),
    *("correct", "status", "error", "budget"),
)
MAX_WIDTH = 100  # characters of a line of the table and of the errors


def summarise(
    answers: pa.Table,
    vanilla: pa.Table | None,
    benchmark: Scorer,
    timings: Mapping[str, float] | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """Return the metrics of one point under their names in MLflow.

    A metric that cannot be computed is left out; it is never zero.

    vanilla: the answers of the unmodified model to the same rows; None without them, or for that
    run itself.
    timings: numbers that are not in the answers, copied unchanged: load_s, wall_s, gpu_busy, ...
    """
    table = answers.select(COLUMNS)
    answered = table.filter(pc.equal(table["status"], "ok"))
    # Accuracy comes first: MLflow's page of compared runs opens on the first metric it received.
    metrics: dict[str, float] = {
        **_accuracy(table, benchmark, seed),
        "rows_total": table.num_rows,
        "rows_error": table.num_rows - answered.num_rows,
        **_visual_tokens(answered),
        **_speed(answered),
        **(timings or {}),
    }
    if vanilla is not None:
        pair = PairedAnswers.of(table, vanilla.select(COLUMNS), benchmark, seed)
        metrics |= pair.metrics()
        for kind, retention in pair.retention_by_type().items():
            prefix = metric_name(f"{benchmark.name}/{kind}")
            metrics |= intervals.as_metrics(f"{prefix}.accuracy_retention", retention)
    return metrics


def metric_name(text: str) -> str:
    """Return a name that MLflow accepts: letters, digits and _ - . space :

    A slash becomes a dot: MLflow's charts page makes sections of names with slashes, and shows them
    before the headline's.
    """
    return re.sub(r"[^\w\-. :]+", "_", text.replace("/", ".")).strip(". ")[:200]


def _accuracy(table: pa.Table, benchmark: Scorer, seed: int) -> dict[str, float]:
    """Return the headline, the other metrics of the scorer, and the accuracy of each type."""
    answers = AnswerArrays(table)
    if not answers.scored.any():
        return {}
    reported = {  # metrics in which some row counts
        name: metric
        for name, metric in benchmark.metrics(answers).items()
        if any(column.any() for column in metric.denominators)
    }
    cluster = intervals.clusters(table["media"])
    metrics: dict[str, float] = {}
    if headline := reported.get(benchmark.headline):
        interval = _headline_interval(headline, benchmark.headline_max, cluster, seed)
        metrics |= intervals.as_metrics("accuracy", interval)
    metrics["rows_scored"] = int(answers.scored.sum())
    if benchmark.headline == "accuracy":
        reported.pop("accuracy", None)
    for name, metric in reported.items():
        metrics[metric_name(f"{benchmark.name}/{name}")] = answer_metrics.value(metric)
    for kind in answers.scored_keys(answers.types):
        rows = answers.scored & (answers.types == kind)
        prefix = metric_name(f"{benchmark.name}/{kind}")
        interval = intervals.mean(answers.scores[rows], cluster[rows], seed)
        metrics |= intervals.as_metrics(f"{prefix}.accuracy", interval)
        metrics[f"{prefix}.rows"] = int(rows.sum())
        if (chance := benchmark.chances.get(kind)) is not None:
            metrics[f"{prefix}.chance"] = chance
    return metrics


def _headline_interval(metric: Metric, maximum: float, cluster: Ints, seed: int) -> Interval:
    if answer_metrics.is_mean(metric):
        rows = metric.denominators[0] > 0
        return intervals.mean(metric.numerators[0][rows], cluster[rows], seed)
    points = intervals.ratio_sum(metric, cluster, seed)
    return Interval(*(bound / maximum for bound in points))


def _visual_tokens(answered: pa.Table) -> dict[str, float]:
    """Return the mean over rows of the visual tokens a layer sees, and of their share of all."""
    kept, total = as_floats(answered["budget"]), as_floats(answered["visual_tokens_in"])
    rows = ~np.isnan(kept) & (total > 0)
    if not rows.any():
        return {}
    return {
        "visual_tokens_kept": float(kept[rows].mean()),
        "visual_retention": float((kept[rows] / total[rows]).mean()),
    }


def _speed(answered: pa.Table) -> dict[str, float]:
    prefill, decode, compress = (
        as_floats(answered[name]) for name in ("prefill_ms", "decode_ms", "compress_ms")
    )
    metrics: dict[str, float] = {}
    for name, column, ranks in (("prefill", prefill, (50, 95)), ("compress", compress, (50,))):
        times = column[~np.isnan(column)]
        if times.size:
            metrics |= {f"{name}_ms_p{rank}": float(np.percentile(times, rank)) for rank in ranks}
    timed = ~np.isnan(prefill)
    seconds = float(prefill[timed].sum() + np.nansum(decode[timed])) / 1000
    if seconds > 0:
        tokens = float(np.nansum(as_floats(answered["visual_tokens_in"])[timed]))
        metrics["samples_per_s"] = float(timed.sum()) / seconds
        metrics["visual_tokens_per_s"] = tokens / seconds
    peak = pc.max(answered["peak_memory_bytes"]).as_py()
    if peak is not None:
        metrics["peak_memory_gib"] = peak / 2**30
    return metrics


class Failure(NamedTuple):
    """Rows that ended in the same class of error."""

    kind: str
    rows: int
    message: str  # of the first row
    row_ids: tuple[str, ...]  # a few examples


def failures(tables: Iterable[pa.Table], examples: int = 3) -> list[Failure]:
    """Count the errors by class, the most frequent first.

    tables: parts of the answers with ERROR_COLUMNS; together they need not fit into memory.
    """
    count: Counter[str] = Counter()
    first: dict[str, list[tuple[str, str]]] = {}
    for table in tables:
        # `pc.not_equal` would import pandas
        failed = table.filter(pc.invert(pc.match_like(table["status"], "ok")))
        columns = (failed[name].to_pylist() for name in ("row_id", "error"))
        for row_id, error in zip(*columns, strict=True):
            kind, _, message = (error or "unknown").partition(": ")
            count[kind] += 1
            first[kind] = sorted([*first.get(kind, []), (row_id, message)])[:examples]
    classes = [
        Failure(kind, count[kind], rows[0][1], tuple(row_id for row_id, _ in rows))
        for kind, rows in first.items()
    ]
    return sorted(classes, key=lambda failure: (-failure.rows, failure.kind))


def failure_lines(failures: Iterable[Failure]) -> str:
    """Format `failures` for a person; empty without failures."""
    lines = []
    for failure in failures:
        more = ", ..." if failure.rows > len(failure.row_ids) else ""
        ids = ", ".join(" ".join(row_id.split()) for row_id in failure.row_ids)
        lines.append(_shorten(f"{failure.rows} x {failure.kind}: {failure.message}", MAX_WIDTH))
        lines.append(_shorten(f"    {ids}{more}", MAX_WIDTH))
    return redacted("\n".join(lines))


def table(points: Sequence[tuple[str, Mapping[str, float]]]) -> str:
    """Format one line per point, (name, metrics), at the end of a job. `-` is an unknown number.

    Utilization of the GPU is a column where any point has it.
    """
    columns = {
        "method": [name for name, _ in points],
        "accuracy [95 %]": [_range(metrics, "accuracy") for _, metrics in points],
        "retention [95 %]": [_range(metrics, "accuracy_retention") for _, metrics in points],
        "kept": [_number(metrics.get("visual_tokens_kept")) for _, metrics in points],
        "share": [_percent(metrics.get("visual_retention")) for _, metrics in points],
        "rows/s": [_number(metrics.get("samples_per_s")) for _, metrics in points],
        "prefill ms": [_number(metrics.get("prefill_ms_p50")) for _, metrics in points],
        "errors": [
            f"{int(metrics.get('rows_error', 0))}/{int(metrics.get('rows_total', 0))}"
            for _, metrics in points
        ],
    }
    if any("gpu_busy" in metrics for _, metrics in points):
        columns["GPU busy"] = [_percent(metrics.get("gpu_busy")) for _, metrics in points]
    rows = [tuple(columns), *zip(*columns.values(), strict=True)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    widths[0] = min(widths[0], MAX_WIDTH - sum(widths[1:]) - 2 * (len(widths) - 1))
    lines = []
    for name, *cells in rows:
        aligned = (cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))
        lines.append("  ".join([_shorten(name, widths[0]).ljust(widths[0]), *aligned]))
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _range(metrics: Mapping[str, float], name: str) -> str:
    if name not in metrics:
        return "-"
    low, high = (100 * metrics[f"{name}_ci_{end}"] for end in ("low", "high"))
    return f"{100 * metrics[name]:.1f} [{low:.1f}, {high:.1f}]"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _number(value: float | None) -> str:
    """Format a number with three significant digits and separated thousands."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _shorten(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 3]}..."


def sample(answers: pa.Table, rows: int = 100) -> bytes:
    """Return a few answers as the JSON of {columns, data} that MLflow shows as a table.

    Errors come first, then answers evenly spaced over the run, so that one page is representative.
    """
    table = answers.sort_by("row_id")
    answered = np.asarray(pc.equal(table["status"], "ok"), dtype=bool)
    failed, good = np.flatnonzero(~answered)[: rows // 4], np.flatnonzero(answered)
    if len(good):
        good = good[np.unique(np.linspace(0, len(good) - 1, rows - len(failed)).astype(int))]
    chosen = table.select(SAMPLE_COLUMNS).take(np.concatenate([failed, good]))
    data = [
        [", ".join(cell) if isinstance(cell, list) else cell for cell in row.values()]
        for row in chosen.to_pylist()
    ]
    return json.dumps({"columns": list(SAMPLE_COLUMNS), "data": data}, ensure_ascii=False).encode()
