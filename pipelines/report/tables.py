"""Makes the tables of a report. texts.yaml has their titles, notes, queries and fixed columns."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from pipelines.metrics import intervals
from pipelines.metrics.intervals import Interval
from pipelines.metrics.summary import metric_name
from pipelines.report import queries
from pipelines.report.runs import Chapter, Result, Study
from pipelines.report.table import Column, Row, Table, result_rows
from pipelines.report.templates import budget_label, sentences, slug, texts

ABLATIONS = {"sampling": ("fps", 5), "basis": ("10", 6)}
"""Options of ApET's basis with ApET's own value, and the number of the paper's table."""
ACCURACY, EFFICIENCY = range(1, 5), (7,)
"""Numbers of the paper's tables."""


def make_tables(chapter: Chapter) -> list[Table]:
    """All tables of a chapter that have rows."""
    tables = [accuracy_table(chapter), retention_table(chapter), judge_table(chapter)]
    tables += [ablation_table(chapter, option) for option in ABLATIONS]
    tables.append(hard_table(chapter))
    for study in chapter.studies:
        tables += [types_table(study), changes_table(study), _examples(study, "lost")]
        tables += [efficiency_table(study), _examples(study, "slowest"), _examples(study, "errors")]
    return [table for table in tables if table]


def accuracy_table(chapter: Chapter) -> Table | None:
    """Tables 1 to 4 of the paper: one column per benchmark, and the average ratio to vanilla."""
    studies = chapter.studies
    results = _side_by_side(studies, ACCURACY)
    _add_average(results, studies, "accuracy_retention")
    columns = [*_headlines(studies), Column("Average", "accuracy_retention", "percent")]
    counts = [
        Column(f"{study.label} {title}", f"{study.column}.{name}", 0)
        for study in studies
        for title, name in (("rows", "rows_total"), ("errors", "rows_error"))
    ]
    compared = [study for study in studies if study.vanilla and len(study.runs) > 1]
    return _table(
        "accuracy",
        chapter,
        ["Method", *_titles(columns + counts)],
        result_rows([*columns, *counts], results),
        studies,
        note=sentences("scoring", studies),
        covers=True,
        more_sql=[queries.query("average", compared)] if compared else [],
        csv_only=len(counts),
    )


def retention_table(chapter: Chapter) -> Table | None:
    """Each run's accuracy relative to vanilla, its significance, and the test's power."""
    compared = [
        [result for result in study.measured if "p_value" in result.metrics]
        for study in chapter.studies
    ]
    return _below_each_other("retention", chapter, compared)


def hard_table(chapter: Chapter) -> Table | None:
    """Accuracy on VTC-Bench's hard rows beside accuracy on all rows."""
    return _below_each_other("hard", chapter, [study.hard for study in chapter.studies])


def judge_table(chapter: Chapter) -> Table | None:
    """Table 4 of the paper: accuracy and score that a judge gives to open answers."""
    judged = [
        study
        for study in chapter.studies
        if any("judge_accuracy" in result.metrics for result in study.measured)
    ]
    columns = [
        Column(f"{study.label} {title}", f"{study.column}.{key}", digits)
        for study in judged
        for title, key, digits in (("Acc", "judge_accuracy", 1), ("Score", "judge_score", 2))
    ]
    results = _side_by_side(judged, ACCURACY)
    for title, name in (("Acc", "judge_accuracy_retention"), ("Score", "judge_score_retention")):
        _add_average(results, judged, name)
        columns.append(Column(f"Average {title}", name, "percent"))
    judges = {run.record.tags.get("judge/name", "") for study in judged for run in study.runs}
    note = f"Judged by {', '.join(sorted(judges - {''}))}."
    rows = result_rows(columns, results)
    titles = ["Method", *_titles(columns)]
    return _table("judged", chapter, titles, rows, judged, note=note, covers=True)


def ablation_table(chapter: Chapter, option: str) -> Table | None:
    """Tables 5 and 6 of the paper: ApET runs that differ in a single option of the basis."""
    default, paper_table = ABLATIONS[option]
    variants: dict[str, dict[tuple[int, int, str], Result]] = defaultdict(dict)
    for result in _side_by_side(chapter.studies, [paper_table]):
        if result.point.method == "apet":
            options = dict(result.point.options)
            value = options.pop(option, default)
            others = (f"{name}={other}" for name, other in options.items())
            group = ", ".join([budget_label(result.point.budget), *others])
            variants[group][result.paper_table, len(value), value] = result
    compared = [
        (group, value, result)
        for group, by_value in variants.items()
        if sum(not number for number, *_ in by_value) > 1
        for (*_, value), result in sorted(by_value.items())
    ]
    changed = [result.metrics for _, value, result in compared if value != default]
    # Benchmarks that only have ApET's own value say nothing about the option.
    studies = [
        study
        for study in chapter.studies
        if any(f"{study.column}.rows_total" in metrics for metrics in changed)
    ]
    columns = _headlines(studies)
    rows = []
    for group, value, result in compared:
        cells = [column.cell(result.metrics) for column in columns]
        name = f"{value} (ApET's own)" if value == default else value
        rows.append(Row((name, *cells), group, result.paper_table))
    kind = f"ablation-{option}"
    titles = [texts()["tables"][kind]["title"], *_titles(columns)]
    return _table(kind, chapter, titles, rows, studies, covers=True)


def efficiency_table(study: Study) -> Table | None:
    """Table 7 of the paper, for one benchmark."""
    columns = _columns("efficiency")
    rows = result_rows(columns, [r for r in study.results if r.paper_table in (0, *EFFICIENCY)])
    titles = ["Method", *_titles(columns)]
    return _table("efficiency", study, titles, rows, [study], covers=True)


def types_table(study: Study) -> Table | None:
    """Each run's accuracy relative to vanilla, by type of question."""
    types = [name for name in study.types if name]

    def rows(label: str, results: Sequence[Result], metric: str, form: str | int) -> list[Row]:
        prefix = study.benchmark.name
        keys = [f"{metric_name(f'{prefix}/{name}')}.{metric}" for name in types]
        columns = [Column(*column, form) for column in zip(types, keys, strict=True)]
        return result_rows(columns, results, label)

    vanilla = [result for result in study.measured if result.point.method == "vanilla"]
    lines = [
        *rows("Rows", vanilla, "rows", 0),
        *rows("Chance %", vanilla, "chance", "percent"),
        *rows("Vanilla's accuracy %", vanilla, "accuracy", "percent"),
        *rows("{} kept %", _compared(study), "accuracy_retention", "percent"),
    ]
    return _table("types", study, ["Method", *types], lines if types else [], [study])


def changes_table(study: Study) -> Table | None:
    """Rows that each run lost and gained against vanilla, by type of question."""
    columns = [
        Column(f"{name or 'Rows'} {kind}", f"{kind}.{name}", 0)
        for name in study.types
        for kind in ("lost", "gained")
    ]
    rows = result_rows(columns, _compared(study))
    return _table("changed", study, ["Method", *_titles(columns)], rows, [study])


def _side_by_side(studies: Sequence[Study], paper_tables: Sequence[int]) -> list[Result]:
    """One result per method and budget, with the metrics of each study below its column's name."""
    merged: dict[tuple[Any, ...], dict[str, Any]] = defaultdict(dict)
    for study in studies:
        for point, metrics, number in study.results:
            if number in (0, *paper_tables):
                values = {f"{study.column}.{name}": value for name, value in metrics.items()}
                merged[point.sort_key, number, point].update(values)
    rows = sorted(merged.items(), key=lambda row: row[0])
    return [Result(point, values, number) for (_, number, point), values in rows]


def _add_average(results: Sequence[Result], studies: Sequence[Study], name: str) -> None:
    """Adds the mean ratio to vanilla over the benchmarks that have one, under its own name."""
    for _, metrics, _ in results:
        keys = [f"{study.column}.{name}" for study in studies]
        parts: list[list[Any]] = [
            [metrics.get(f"{key}{end}") for end in ("", "_ci_low", "_ci_high")]
            for key in keys
            if key in metrics
        ]
        if any(None in part for part in parts):  # no interval: of the paper, or vanilla itself
            metrics[name] = sum(value for value, *_ in parts) / len(parts)
        elif parts:
            mean = intervals.average([Interval(*part) for part in parts])
            metrics.update(intervals.as_metrics(name, mean))


def _compared(study: Study) -> list[Result]:
    """Results of runs that have rows in common with vanilla."""
    lost = [f"lost.{name}" for name in study.types]
    return [result for result in study.measured if any(key in result.metrics for key in lost)]


def _headlines(studies: Sequence[Study]) -> list[Column]:
    """A column per benchmark with its official score."""
    return [Column(s.label, f"{s.column}.headline", s.digits) for s in studies]


def _columns(kind: str) -> list[Column]:
    columns = texts()["tables"][kind]["columns"].items()
    return [Column(title, *description) for title, description in columns]


def _titles(columns: Sequence[Column]) -> list[str]:
    return [column.title for column in columns]


def _below_each_other(
    kind: str, chapter: Chapter, results: Sequence[Sequence[Result]]
) -> Table | None:
    """A table with fixed columns of results of each study, and their benchmarks if several."""
    columns = [Column("Benchmark", "benchmark")] if len(chapter.studies) > 1 else []
    columns += _columns(kind)
    rows: list[Row] = []
    for study, own in zip(chapter.studies, results, strict=True):
        named = [r._replace(metrics={**r.metrics, "benchmark": study.label}) for r in own]
        rows += result_rows(columns, named)
    studies = [study for study, own in zip(chapter.studies, results, strict=True) if own]
    return _table(kind, chapter, ["Method", *_titles(columns)], rows, studies)


def _examples(study: Study, kind: str) -> Table | None:
    """A table of rows: lost, slowest or errors."""
    columns = _columns(kind)
    rows = [Row(tuple(column.cell(row) for column in columns)) for row in getattr(study, kind)]
    return _table(kind, study, _titles(columns), rows, [study])


def _table(
    kind: str,
    subject: Chapter | Study,
    columns: Sequence[str],
    rows: Sequence[Row],
    studies: Sequence[Study],
    *,
    note: str = "",
    covers: bool = False,
    more_sql: Sequence[str] = (),
    csv_only: int = 0,
) -> Table | None:
    """A table with the title, note and queries of its kind in texts.yaml; None without rows.

    covers: say which questions its numbers cover
    """
    rows = [row for row in rows if not row.published or any(row.cells[1:])]
    if not rows:
        return None
    text = texts()["tables"][kind]
    name = slug(f"{kind}-{subject.column}" if isinstance(subject, Study) else kind)
    source = max(row.published for row in rows)
    published = text["published"].format(table=source) if source else ""
    coverage = sentences("coverage", studies, bool(source)) if covers else ""
    note = " ".join(part for part in (text["note"], note, coverage, published) if part)
    sql = [queries.query(query, study) for study in studies for query in text["queries"]]
    title = f"{text['title']}: {subject.title}"
    return Table(name, title, tuple(columns), rows, note, "\n".join([*sql, *more_sql]), csv_only)
