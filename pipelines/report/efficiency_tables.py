"""Tables 5 to 7: what ApET's basis matters, and what each method costs."""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.report import labels, published_rows, queries
from pipelines.report.accuracy_tables import cell, subsets
from pipelines.report.measurements import StudyResults
from pipelines.report.runs import Chapter, ReportRun
from pipelines.report.table import Row, Table, faster, number, percent, significant, together

ABLATED = {
    "sampling": ("Sampling of the basis", "fps"),
    "basis": ("Basis size M", "10"),
}  # and ApET's own choice

COLUMNS = (
    *(
        "Tokens",
        "Share %",
        "Total s",
        "Speed-up",
        "Prefill ms",
        "Prefill speed-up",
        "TFLOPs",
        "Memory GiB",
    ),
    *("Compress ms", "Rows/s"),
)


def ablation_tables(chapter: Chapter, findings: Sequence[StudyResults]) -> list[Table]:
    """Runs of ApET that differ in nothing but how its basis is chosen, where there are such."""
    tables = []
    for option, (title, own) in ABLATED.items():
        varied = _varied(chapter, option)
        others = [
            run
            for lines in varied.values()
            for value, runs in lines.items()
            if value != own
            for run in runs
        ]
        asked = [
            each for each in findings if each.of(others)
        ]  # benchmarks with ApET's own choice alone say nothing
        rows: list[Row] = []
        for (budget, rest), lines in varied.items():
            group = ", ".join([labels.budget_label(budget), *rest])
            for value in sorted(lines, key=lambda text: (len(text), text)):
                cells = [cell(each, lines[value]) for each in asked]
                rows.append(
                    Row((f"{value} (ApET's own)" if value == own else value, *cells), group)
                )
            rows += (
                ()
                if rest
                else published_rows.ablation(
                    chapter, option, budget, [each.study for each in asked]
                )
            )
        if rows:
            said = f" Published figures are the paper's Table {5 if option == 'sampling' else 6}."
            tables.append(
                Table(
                    f"ablation-{option}",
                    f"{title}: {chapter.title}",
                    (title, *(labels.benchmark_label(each.study) for each in asked)),
                    together(rows),
                    f"{labels.INTERVALS} ApET with nothing else changed."
                    + subsets(asked, any(row.published for row in rows))
                    + (said if any(row.published for row in rows) else ""),
                    "\n".join(queries.accuracy(each.study) for each in asked),
                )
            )
    return tables


def _varied(
    chapter: Chapter, option: str
) -> dict[tuple[str, tuple[str, ...]], dict[str, list[ReportRun]]]:
    """Runs of ApET by budget and what else they have, and by the option's value; where there are two values."""
    own = ABLATED[option][1]
    found: dict[tuple[str, tuple[str, ...]], dict[str, list[ReportRun]]] = {}
    for runs in chapter.lines():
        run = runs[0]
        if run.method == "apet":
            rest = tuple(
                f"{key}={value}" for key, value in sorted(run.options.items()) if key != option
            )
            found.setdefault((run.budget, rest), {})[str(run.options.get(option, own))] = runs
    return {key: lines for key, lines in found.items() if len(lines) > 1}


def efficiency_table(chapter: Chapter, each: StudyResults) -> Table:
    """Table 7, of one benchmark."""
    base = each.vanilla.metrics if each.vanilla else {}
    rows: list[Row] = []
    for result in each.results:
        metrics, run = result.metrics, result.run
        rate, prefill = metrics.get("samples_per_s"), metrics.get("prefill_ms_p50")
        cells = (
            number(metrics.get("visual_tokens_kept")),
            percent(metrics, "visual_retention"),
            number(result.device_s),
            faster(rate, base.get("samples_per_s")),
            number(prefill),
            faster(base.get("prefill_ms_p50"), prefill),
            significant(metrics.get("prefill_tflops")),
            number(metrics.get("peak_memory_gib"), 2),
            number(metrics.get("compress_ms_p50"), 2),
            significant(rate),
        )
        rows.append(Row((labels.method_label(run.label), *cells), labels.budget_label(run.budget)))
        rows += published_rows.cost(chapter, each.study, run)
    said = " Published figures are the paper's Table 7, on one A100 and POPE."
    return Table(
        f"efficiency-{each.study.column}",
        f"Efficiency: {each.study.title}",
        ("Method", *COLUMNS),
        together(rows),
        "Time of the device: prefill and decoding of all answered rows, a batch's time divided by its rows, without"
        " start-up and reading. Prefill and compress ms are medians of rows; memory is the device's peak. TFLOPs are a"
        " prefill's, from the model's shape and the tokens of rows: the mean of a sample of them, which no query has."
        " It is prefill_tflops in the record.json of the run, counted when the job ended. Speed-ups are the ratios to"
        " vanilla's, of rows/s and of prefill ms."
        + subsets([each], any(row.published for row in rows))
        + (said if any(row.published for row in rows) else ""),
        queries.efficiency(each.study),
    )
