"""Tables about rows: types of questions, and examples of lost, slow and failed rows."""

from pipelines.metrics.summary import metric_name
from pipelines.report import queries
from pipelines.report.labels import budget_label
from pipelines.report.measurements import StudyResults
from pipelines.report.table import Cell, Row, Table, make_table, method_row, number, percent

MAX_CHARACTERS = 160
"""Length of a text in a table."""


def types_table(study: StudyResults) -> Table | None:
    """Each run's accuracy relative to vanilla, by type of question."""
    compared = [result for result in study.results if result.changes]
    types = sorted({name for result in compared for name in result.changes} - {""})
    if study.vanilla is None or not types:
        return None
    base = study.vanilla.metrics
    prefixes = [metric_name(f"{study.study.benchmark.name}/{name}") for name in types]
    counts = [number(base.get(f"{prefix}.rows"), 0) for prefix in prefixes]
    chances = [percent(base, f"{prefix}.chance") for prefix in prefixes]
    accuracies = [percent(base, f"{prefix}.accuracy") for prefix in prefixes]
    rows = [
        Row((name, *cells), budget_label(""))
        for name, cells in (
            ("Rows", counts),
            ("Chance %", chances),
            ("Vanilla's accuracy %", accuracies),
        )
    ]
    for result in compared:
        kept = [percent(result.metrics, f"{prefix}.accuracy_retention") for prefix in prefixes]
        rows.append(method_row(f"{result.run.label} kept %", result.run.budget, kept))
    return make_table(
        "types",
        study.study,
        ("Method", *types),
        rows,
        queries.query("vanilla_types", study.study) + "\n" + queries.query("types", study.study),
    )


def changes_table(study: StudyResults) -> Table | None:
    """Rows that each run lost and gained against vanilla, by type of question."""
    compared = [result for result in study.results if result.changes]
    types = sorted({name for result in compared for name in result.changes})
    rows = []
    for result in compared:
        cells: list[Cell] = []
        for change in map(result.changes.get, types):
            cells += [number(change.lost, 0), number(change.gained, 0)] if change else [None, None]
        rows.append(method_row(result.run.label, result.run.budget, cells))
    return make_table(
        "changed",
        study.study,
        ("Method", *(f"{name or 'Rows'} {kind}" for name in types for kind in ("lost", "gained"))),
        rows,
        queries.query("types", study.study),
    )


def lost_rows_table(study: StudyResults) -> Table | None:
    """Rows that vanilla got right and most runs wrong."""
    runs = sum(bool(result.changes) for result in study.results)
    rows = [
        Row(
            (
                row["row_id"],
                row["type"] or None,
                f"{row['lost_by']} of {runs}",
                _shorten(row["question"]),
                _shorten(" | ".join(row["reference"] or [])),
                _shorten(row["prediction"]),
                _shorten(row["run_answer"]),
            )
        )
        for row in study.lost
    ]
    columns = ("Row", "Type", "Lost by", "Question", "Reference", "Vanilla said", "A run said")
    return make_table("lost", study.study, columns, rows, queries.query("lost_rows", study.study))


def slowest_table(study: StudyResults) -> Table | None:
    columns = {  # digits of each
        "device_ms": 1,
        "prefill_ms": 1,
        "decode_ms": 1,
        "compress_ms": 2,
        "visual_tokens_in": 0,
        "new_tokens": 0,
        "batch_rows": 0,
    }
    rows = [
        Row(
            (
                row["row_id"],
                row["point"],
                *(number(row[name], digits) for name, digits in columns.items()),
            )
        )
        for row in study.slowest
    ]
    titles = (
        *("Row", "Run", "Device ms", "Prefill ms", "Decode ms", "Compress ms"),
        *("Visual tokens", "New tokens", "Batch"),
    )
    return make_table("slowest", study.study, titles, rows, queries.query("slowest", study.study))


def errors_table(study: StudyResults) -> Table | None:
    """Rows without an answer, by class of error."""
    rows = []
    for result in study.results:
        for failure in result.failures:
            more = ["..."] if failure.rows > len(failure.row_ids) else []
            row_ids = ", ".join([*failure.row_ids, *more])
            count, message = number(failure.rows, 0), _shorten(failure.message)
            rows.append(Row((result.run.point, failure.kind, count, message, _shorten(row_ids))))
    columns = ("Run", "Error", "Rows", "The first one's message", "Which")
    return make_table("errors", study.study, columns, rows, queries.query("errors", study.study))


def _shorten(text: str | None) -> str:
    text = " ".join((text or "").split())
    return text if len(text) <= MAX_CHARACTERS else f"{text[: MAX_CHARACTERS - 3]}..."
