"""What a run's answers say: the metrics of one point, its errors, and the table at the end of a job.

What counts, once for all numbers:

- Accuracy is the benchmark's headline as a share of the best there is: of most the mean of `score`, or of `correct`
  where a row has no score, over the rows that were answered and that have something to compare with. Rows that ended in
  an error are not wrong answers; they are counted apart. Whatever else the official scorer reports is beside it.
- Intervals are for 95 % and over media (pipelines.metrics.intervals). What is said against the unmodified model is paired: the
  same rows of both runs (pipelines.metrics.comparison).
- Speed is that of the device: rows by the time one actor spent on prefill and decoding. Start-up, reading and the
  other methods that took turns in the same actor are not in it; `wall_s` is all of it.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines.metrics import answer_metrics
from pipelines.metrics import intervals
from pipelines.metrics.answer_metrics import AnswerArrays, Metric, Scorer
from pipelines.metrics.comparison import PairedAnswers
from pipelines.metrics.intervals import Interval
from pipelines.text import redacted

COLUMNS = (
    *(*answer_metrics.COLUMNS, "error", "budget", "visual_tokens_in"),
    *("prefill_ms", "decode_ms", "compress_ms", "peak_memory_bytes"),
)  # what `summarise` reads, for who does not want to load more
ERROR_COLUMNS = ("row_id", "status", "error")  # and `errors`


class Answers(Protocol):
    """A pyarrow dataset, or whatever else can be read as a table."""

    def to_table(self, *, columns: list[str]) -> pa.Table: ...


def summarise(
    answers: pa.Table | Answers,
    vanilla: pa.Table | Answers | None,
    benchmark: Scorer,
    timings: Mapping[str, float] | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """The metrics of one point, by the names they have in MLflow. What cannot be known is left out, never zero.

    vanilla: the answers of the unmodified model to the same rows; None where there are none, or for that run itself.
    timings: what the answers do not know, taken over as it is: load_s, wall_s, prefill_tflops, gpu_busy, ...
    """
    table = _table(answers)
    good = table.filter(pc.equal(table["status"], "ok"))
    metrics: dict[str, float] = {
        **_accuracy(
            table, benchmark, seed
        ),  # first: MLflow's page of compared runs opens on the first metric it got
        "rows_total": table.num_rows,
        "rows_error": table.num_rows - good.num_rows,
        **_tokens(good),
        **_speed(good),
        **(timings or {}),
    }
    if vanilla is not None:
        metrics |= _against(PairedAnswers.of(table, _table(vanilla), benchmark, seed))
    return metrics


def _table(answers: pa.Table | Answers) -> pa.Table:
    return (
        answers.select(COLUMNS)
        if isinstance(answers, pa.Table)
        else answers.to_table(columns=list(COLUMNS))
    )


def _floats(column: pa.ChunkedArray) -> NDArray[np.float64]:
    return np.asarray(pc.fill_null(pc.cast(column, pa.float64()), float("nan")), dtype=np.float64)


def _accuracy(table: pa.Table, benchmark: Scorer, seed: int) -> dict[str, float]:
    """The headline, what else the scorer reports, and each type of question beside the chance of guessing it."""
    sheet = AnswerArrays(table)
    if not sheet.scored.any():
        return {}
    found = {
        name: figure
        for name, figure in benchmark.figures(sheet).items()
        if answer_metrics.has_rows(figure)
    }
    cluster = intervals.clusters(table["media"])
    headline = found.get(benchmark.headline)
    metrics = (
        intervals.as_metrics("accuracy", _interval(headline, benchmark.most, cluster, seed))
        if headline
        else {}
    )
    metrics["rows_scored"] = int(sheet.scored.sum())
    reported = {
        name: figure
        for name, figure in found.items()
        if name != "accuracy" or benchmark.headline != name
    }
    metrics |= {
        metric_name(f"{benchmark.name}/{name}"): answer_metrics.value(figure)
        for name, figure in reported.items()
    }
    for kind in sorted(set(sheet.types[sheet.scored]) - {""}):
        mine = sheet.scored & (sheet.types == kind)
        prefix = metric_name(f"{benchmark.name}/{kind}")
        metrics |= intervals.as_metrics(
            f"{prefix}.accuracy",
            intervals.mean(sheet.worth[mine], intervals.renumber(cluster[mine]), seed),
        )
        metrics[f"{prefix}.rows"] = int(mine.sum())
        chance = benchmark.chance(kind)
        if chance is not None:
            metrics[f"{prefix}.chance"] = chance
    return metrics


def _interval(figure: Metric, most: float, cluster: intervals.Ints, seed: int) -> Interval:
    if (values := answer_metrics.row_values(figure)) is not None:
        among = figure[0].below > 0
        return intervals.mean(values[among], intervals.renumber(cluster[among]), seed)
    return Interval(
        *(
            each / most
            for each in intervals.ratio_sum(answer_metrics.as_ratio_sum(figure), cluster, seed)
        )
    )


def metric_name(text: str) -> str:
    """A name that MLflow takes: letters, digits and _ - . space :

    A dot for a slash: of names with slashes its charts page makes sections, and puts them before the headline's.
    """
    return re.sub(r"[^\w\-. :]+", "_", text.replace("/", ".")).strip(". ")[:200]


def _against(pair: PairedAnswers) -> dict[str, float]:
    """The run beside vanilla, and what each type of question keeps."""
    metrics = pair.metrics()
    for kind, kept in pair.retention_by_type().items():
        metrics |= intervals.as_metrics(
            f"{metric_name(f'{pair.benchmark.name}/{kind}')}.accuracy_retention", kept
        )
    return metrics


def _tokens(good: pa.Table) -> dict[str, float]:
    """Visual tokens a layer sees on average, and their share of what the unmodified model sees; means over rows."""
    kept, given = _floats(good["budget"]), _floats(good["visual_tokens_in"])
    known = ~np.isnan(kept) & (given > 0)
    if not known.any():
        return {}
    share = kept[known] / given[known]
    return {
        "visual_tokens_kept": float(kept[known].mean()),
        "visual_retention": float(share.mean()),
    }


def _speed(good: pa.Table) -> dict[str, float]:
    prefill, decode, compress = (
        _floats(good[name]) for name in ("prefill_ms", "decode_ms", "compress_ms")
    )
    metrics: dict[str, float] = {}
    for name, column, shares in (("prefill", prefill, (50, 95)), ("compress", compress, (50,))):
        known = column[~np.isnan(column)]
        if known.size:
            metrics |= {
                f"{name}_ms_p{share}": float(np.percentile(known, share)) for share in shares
            }
    timed = ~np.isnan(prefill)
    seconds = float(prefill[timed].sum() + np.nansum(decode[timed])) / 1000
    if seconds > 0:
        metrics["samples_per_s"] = float(timed.sum()) / seconds
        metrics["visual_tokens_per_s"] = (
            float(np.nansum(_floats(good["visual_tokens_in"])[timed])) / seconds
        )
    peak = pc.max(good["peak_memory_bytes"]).as_py()
    if peak is not None:
        metrics["peak_memory_gib"] = peak / 2**30
    return metrics


class Failure(NamedTuple):
    """Rows that ended in the same class of error."""

    kind: str
    rows: int
    message: str  # of the first one
    row_ids: tuple[str, ...]  # a few


def failures(parts: Iterable[pa.Table], examples: int = 3) -> list[Failure]:
    """What went wrong, the most frequent first, from the columns ERRORS of answers that need not fit into memory."""
    count: Counter[str] = Counter()
    first: dict[str, list[tuple[str, str]]] = {}
    for part in parts:
        bad = part.filter(
            pc.invert(pc.match_like(part["status"], "ok"))
        )  # `pc.not_equal` would import pandas
        for row_id, error in zip(bad["row_id"].to_pylist(), bad["error"].to_pylist(), strict=True):
            kind, _, message = (error or "unknown").partition(": ")
            count[kind] += 1
            first[kind] = sorted([*first.get(kind, []), (row_id, message)])[:examples]
    failures = [
        Failure(kind, count[kind], rows[0][1], tuple(row_id for row_id, _ in rows))
        for kind, rows in first.items()
    ]
    return sorted(failures, key=lambda failure: (-failure.rows, failure.kind))


def failure_lines(failures: Iterable[Failure], width: int = 100) -> str:
    """`errors` as a person reads it; empty if there were none."""
    lines = []
    for failure in failures:
        more = ", ..." if failure.rows > len(failure.row_ids) else ""
        names = ", ".join(" ".join(row_id.split()) for row_id in failure.row_ids)
        lines += [
            _cut(f"{failure.rows} x {failure.kind}: {failure.message}", width),
            _cut(f"    {names}{more}", width),
        ]
    return redacted("\n".join(lines))


HEADER = (
    "method",
    "accuracy [95 %]",
    "retention [95 %]",
    "kept",
    "share",
    "rows/s",
    "prefill ms",
    "errors",
)
BUSY = "GPU busy"
WIDTH = 100


def table(points: Sequence[tuple[str, Mapping[str, float]]]) -> str:
    """One line a point, (name, metrics), at most WIDTH columns: what a job ends with. `-` is what is not known.

    How busy the GPU was is a column where there was one.
    """
    header, rows = HEADER, [_line(name, metrics) for name, metrics in points]
    if any("gpu_busy" in metrics for _, metrics in points):
        busy = [_percent(metrics.get("gpu_busy")) for _, metrics in points]
        header, rows = (*header, BUSY), [(*row, cell) for row, cell in zip(rows, busy, strict=True)]
    widths = [max(len(row[place]) for row in [header, *rows]) for place in range(len(header))]
    widths[0] = min(widths[0], WIDTH - sum(widths[1:]) - 2 * (len(header) - 1))
    lines = [
        "  ".join(
            cell.rjust(w) if place else _cut(cell, w).ljust(w)
            for place, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in [header, *rows]
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _line(name: str, metrics: Mapping[str, float]) -> tuple[str, ...]:
    return (
        name,
        _range(metrics, "accuracy"),
        _range(metrics, "accuracy_retention"),
        _number(metrics.get("visual_tokens_kept")),
        _percent(metrics.get("visual_retention")),
        _number(metrics.get("samples_per_s")),
        _number(metrics.get("prefill_ms_p50")),
        f"{int(metrics.get('rows_error', 0))}/{int(metrics.get('rows_total', 0))}",
    )


def _range(metrics: Mapping[str, float], name: str) -> str:
    if name not in metrics:
        return "-"
    low, high = (100 * metrics[f"{name}_ci_{end}"] for end in ("low", "high"))
    return f"{100 * metrics[name]:.1f} [{low:.1f}, {high:.1f}]"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _number(value: float | None) -> str:
    """Three digits that mean something, thousands apart."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 3]}..."


SAMPLE = (
    "row_id",
    "type",
    "media",
    "question",
    "reference",
    "prediction",
    "correct",
    "status",
    "error",
    "budget",
)


def sample(answers: pa.Table, rows: int = 100) -> bytes:
    """A few answers as MLflow shows a table in its pages: JSON of {columns, data}. Errors come first, then an even
    choice over the run, so that one page shows what there is."""
    table = answers.sort_by("row_id")
    fine = np.asarray(pc.equal(table["status"], "ok"), dtype=bool)
    bad, good = np.flatnonzero(~fine)[: rows // 4], np.flatnonzero(fine)
    if len(good):
        good = good[np.unique(np.linspace(0, len(good) - 1, rows - len(bad)).astype(int))]
    rest = table.select(SAMPLE).take(np.concatenate([bad, good]))
    data: list[list[Any]] = [
        [", ".join(cell) if isinstance(cell, list) else cell for cell in row.values()]
        for row in rest.to_pylist()
    ]
    return json.dumps({"columns": list(SAMPLE), "data": data}, ensure_ascii=False).encode()
