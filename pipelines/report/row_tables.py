"""Tables about rows: which types of question suffer, which rows went lost, which were slow, which have no answer."""

from __future__ import annotations

from pipelines.metrics.summary import metric_name
from pipelines.report import labels, queries
from pipelines.report.measurements import StudyResults
from pipelines.report.table import Cell, Row, Table, number, percent

LONGEST = 160  # characters of a text in a table


def types_table(each: StudyResults) -> Table | None:
    """What each run keeps of each type of question."""
    bench, base = each.study.benchmark, each.vanilla
    compared = [result for result in each.results if result.changed]
    kinds = sorted({kind for result in compared for kind in result.changed} - {""})
    if base is None or not kinds:
        return None
    prefixes = [metric_name(f"{bench.name}/{kind}") for kind in kinds]
    whole = labels.budget_label("")
    chances = [base.metrics.get(f"{prefix}.chance") for prefix in prefixes]
    rows = [
        Row(
            ("Rows", *(number(base.metrics.get(f"{prefix}.rows"), 0) for prefix in prefixes)), whole
        ),
        Row(
            ("Chance %", *(None if chance is None else number(100 * chance) for chance in chances)),
            whole,
        ),
        Row(
            (
                "Vanilla's accuracy %",
                *(percent(base.metrics, f"{prefix}.accuracy") for prefix in prefixes),
            ),
            whole,
        ),
    ]
    for result in compared:
        kept = [percent(result.metrics, f"{prefix}.accuracy_retention") for prefix in prefixes]
        rows.append(
            Row(
                (f"{labels.method_label(result.run.label)} kept %", *kept),
                labels.budget_label(result.run.budget),
            )
        )
    return Table(
        f"types-{each.study.column}",
        f"Accuracy kept by type of question: {each.study.title}",
        ("Method", *kinds),
        tuple(rows),
        f"{labels.INTERVALS} Kept is accuracy by vanilla's on the same rows. Many types and runs are compared here: some"
        " of their intervals miss the truth.",
        queries.vanilla_types(each.study) + "\n" + queries.types(each.study),
    )


def changes_table(each: StudyResults) -> Table | None:
    """Where accuracy is lost: rows by type that vanilla has right and a run wrong, and the other way."""
    compared = [result for result in each.results if result.changed]
    kinds = sorted({kind for result in compared for kind in result.changed})
    if not kinds:
        return None
    rows = []
    for result in compared:
        cells: list[Cell] = []
        for found in (result.changed.get(kind) for kind in kinds):
            cells += [number(found.lost, 0), number(found.gained, 0)] if found else [None, None]
        rows.append(
            Row(
                (labels.method_label(result.run.label), *cells),
                labels.budget_label(result.run.budget),
            )
        )
    return Table(
        f"changed-{each.study.column}",
        f"Where accuracy is lost: {each.study.title}",
        ("Method", *(f"{kind or 'Rows'} {what}" for kind in kinds for what in ("lost", "gained"))),
        tuple(rows),
        "Rows that are worth less than vanilla's (lost), and more (gained).",
        queries.types(each.study),
    )


def lost_rows_table(each: StudyResults) -> Table | None:
    """The rows that most runs got wrong and vanilla right."""
    if not each.lost:
        return None
    runs = sum(bool(result.changed) for result in each.results)
    rows = [
        Row(
            (
                row["row_id"],
                row["type"] or None,
                f"{row['lost_by']} of {runs}",
                _cut(row["question"]),
                _cut(" | ".join(row["reference"] or [])),
                _cut(row["prediction"]),
                _cut(f"{row['point']}: {row['said']}"),
            )
        )
        for row in each.lost
    ]
    return Table(
        f"lost-{each.study.column}",
        f"Rows that most runs lost: {each.study.title}",
        ("Row", "Type", "Lost by", "Question", "Reference", "Vanilla said", "A run said"),
        tuple(rows),
        query=queries.lost_rows(each.study),
    )


def slowest_table(each: StudyResults) -> Table | None:
    if not each.slowest:
        return None
    rows = [
        Row(
            (
                row["row_id"],
                row["point"],
                number(row["device_ms"]),
                number(row["prefill_ms"]),
                number(row["decode_ms"]),
                number(row["compress_ms"], 2),
                number(row["visual_tokens_in"], 0),
                number(row["new_tokens"], 0),
                number(row["batch_rows"], 0),
            )
        )
        for row in each.slowest
    ]
    return Table(
        f"slowest-{each.study.column}",
        f"Slowest rows: {each.study.title}",
        (
            "Row",
            "Run",
            "Device ms",
            "Prefill ms",
            "Decode ms",
            "Compress ms",
            "Visual tokens",
            "New tokens",
            "Batch",
        ),
        tuple(rows),
        "A batch's time divided by its rows.",
        queries.slowest(each.study),
    )


def errors_table(each: StudyResults) -> Table | None:
    """Rows without an answer, by what went wrong."""
    rows = [
        Row(
            (
                result.run.point,
                failure.kind,
                number(failure.rows, 0),
                _cut(failure.message),
                _cut(
                    ", ".join(failure.row_ids)
                    + (", ..." if failure.rows > len(failure.row_ids) else "")
                ),
            )
        )
        for result in each.results
        for failure in result.failures
    ]
    if not rows:
        return None
    return Table(
        f"errors-{each.study.column}",
        f"Rows without an answer: {each.study.title}",
        ("Run", "Error", "Rows", "The first one's message", "Which"),
        tuple(rows),
        "They are in no accuracy. The same job with --retry-errors asks them again.",
        queries.errors(each.study),
    )


def _cut(text: str | None) -> str:
    text = " ".join((text or "").split())
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
