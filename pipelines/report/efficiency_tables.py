"""Tables 5 to 7 of the paper: ApET's basis, and the cost of each method."""

from collections import defaultdict
from collections.abc import Sequence

from pipelines.report import published, queries
from pipelines.report.accuracy_tables import coverage_note
from pipelines.report.labels import budget_label
from pipelines.report.measurements import StudyResults
from pipelines.report.runs import Chapter, ReportRun
from pipelines.report.table import (
    Row,
    Table,
    make_table,
    method_row,
    number,
    percent,
    ratio,
    significant,
)

ABLATIONS = {
    "sampling": ("Sampling of the basis", "fps", 5),
    "basis": ("Basis size M", "10", 6),
}
"""Options of ApET with the table's title, ApET's own value, and the number of the paper's table."""

COLUMNS = (
    *("Tokens", "Share %", "Total s", "Speed-up", "Prefill ms", "Prefill speed-up", "TFLOPs"),
    *("Memory GiB", "Compress ms", "Rows/s"),
)

Variants = dict[tuple[str, tuple[str, ...]], dict[str, list[ReportRun]]]
"""Runs of ApET by budget and other options, then by value of the varied option."""


def ablation_tables(chapter: Chapter, studies: Sequence[StudyResults]) -> list[Table]:
    """Tables of ApET runs that differ in a single option of the basis."""
    tables = []
    for option, (title, default, paper_table) in ABLATIONS.items():
        variants = _variants(chapter, option, default)
        # Benchmarks that only have ApET's own value say nothing about the option.
        changed = [
            run
            for by_value in variants.values()
            for value, runs in by_value.items()
            if value != default
            for run in runs
        ]
        varied = [study for study in studies if study.result_of(changed)]
        rows: list[Row] = []
        for (budget, other_options), by_value in variants.items():
            group = ", ".join([budget_label(budget), *other_options])
            for value in sorted(by_value, key=lambda text: (len(text), text)):
                cells = [study.accuracy(study.result_of(by_value[value])) for study in varied]
                name = f"{value} (ApET's own)" if value == default else value
                rows.append(Row((name, *cells), group))
            if not other_options:
                benchmarks = [study.study for study in varied]
                rows += published.ablation_rows(chapter, option, budget, benchmarks)
        has_published = any(row.published for row in rows)
        source = f" Published figures are from Table {paper_table} of the paper."
        tables.append(
            make_table(
                f"ablation-{option}",
                chapter,
                (title, *(study.study.label for study in varied)),
                rows,
                "\n".join(queries.query("accuracy", study.study) for study in varied),
                more_notes=coverage_note(varied, has_published) + has_published * source,
            )
        )
    return [table for table in tables if table]


def _variants(chapter: Chapter, option: str, default: str) -> Variants:
    """Runs of ApET with at least two values of an option."""
    variants: Variants = defaultdict(dict)
    for runs in chapter.runs_by_method():
        run = runs[0]
        if run.method == "apet":
            others = tuple(f"{k}={v}" for k, v in sorted(run.options.items()) if k != option)
            variants[run.budget, others][str(run.options.get(option, default))] = runs
    return {key: by_value for key, by_value in variants.items() if len(by_value) > 1}


def efficiency_table(chapter: Chapter, study: StudyResults) -> Table | None:
    """Table 7 of the paper, for one benchmark."""
    base = study.vanilla.metrics if study.vanilla else {}
    rows: list[Row] = []
    for result in study.results:
        metrics, run = result.metrics, result.run
        rate, prefill = metrics.get("samples_per_s"), metrics.get("prefill_ms_p50")
        cells = (
            number(metrics.get("visual_tokens_kept")),
            percent(metrics, "visual_retention"),
            number(result.device_s),
            ratio(rate, base.get("samples_per_s")),
            number(prefill),
            ratio(base.get("prefill_ms_p50"), prefill),
            significant(metrics.get("prefill_tflops")),
            number(metrics.get("peak_memory_gib"), 2),
            number(metrics.get("compress_ms_p50"), 2),
            significant(rate),
        )
        rows.append(method_row(run.label, run.budget, cells))
        rows += published.efficiency_row(chapter, study.study, run)
    has_published = any(row.published for row in rows)
    source = " Published figures are from Table 7 of the paper: POPE on one A100."
    return make_table(
        "efficiency",
        study.study,
        ("Method", *COLUMNS),
        rows,
        queries.query("efficiency", study.study),
        more_notes=coverage_note([study], has_published) + has_published * source,
    )
