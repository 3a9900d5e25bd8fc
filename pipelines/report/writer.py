"""Writes the report of runs: the page, the charts, the tables in three formats, and the queries.

write_report(["results"])  # results/report/report.html, figures/*.svg, tables/*.csv, *.md, *.tex
"""

from collections.abc import Sequence
from dataclasses import replace

from pipelines.report import charts, queries
from pipelines.report.accuracy_tables import (
    accuracy_table,
    hard_table,
    judge_table,
    retention_table,
)
from pipelines.report.efficiency_tables import ablation_tables, efficiency_table
from pipelines.report.measurements import StudyResults, measure
from pipelines.report.page import Section, render_page
from pipelines.report.pictures import load_pictures
from pipelines.report.row_tables import (
    changes_table,
    errors_table,
    lost_rows_table,
    slowest_table,
    types_table,
)
from pipelines.report.runs import Chapter, collect_runs
from pipelines.report.table import Table, slug
from pipelines.report.table_formats import as_csv, as_latex, as_markdown
from pipelines.results.storage import Folder, run_concurrently

PAGE_FILE, QUERIES_FILE = "report.html", "queries.sql"
CHARTS_FOLDER, TABLES_FOLDER = "figures", "tables"
TABLE_FORMATS = {"csv": as_csv, "md": as_markdown, "tex": as_latex}


def write_report(uris: Sequence[str], output: str | None = None) -> tuple[Folder, list[str]]:
    """Returns the report's folder and the names of its files, the page first.

    uris: folders of runs, or folders that contain some
    output: the report's folder; `report` beside the runs by default
    """
    chapters, notes = collect_runs(uris)
    results = [[measure(study) for study in chapter.studies] for chapter in chapters]
    # Names of tables and charts must be unique in a report.
    suffixes = [f" {chapter.title}" if len(chapters) > 1 else "" for chapter in chapters]
    sections = [_section(*each) for each in zip(chapters, results, suffixes, strict=True)]
    sections += [
        Section(chart.title, [chart]) for chart in charts.prefill_charts(chapters, results)
    ]
    parents = [_parent(chapter) for chapter in chapters]
    pictures, picture_notes = load_pictures(list(dict.fromkeys([*uris, *parents])))
    setup = queries.setup(chapters)
    facts = [_summary(chapters, results), *notes, *picture_notes]
    models = " and ".join(dict.fromkeys(chapter.model for chapter in chapters))
    title = f"What dropping visual tokens does to {models}"
    tables = [table for section in sections for table in section.tables]
    files = {
        PAGE_FILE: render_page(title, facts, sections, pictures, setup).encode(),
        QUERIES_FILE: _sql(setup, tables).encode(),
    }
    for chart in (chart for section in sections for chart in section.charts):
        files[f"{CHARTS_FOLDER}/{slug(chart.title)}.svg"] = chart.svg
    for table in tables:
        for extension, format_table in TABLE_FORMATS.items():
            files[f"{TABLES_FOLDER}/{table.name}.{extension}"] = format_table(table).encode()
    folder = Folder.of(output) if output else Folder.of(parents[0]).child("report")

    def write(path: str) -> None:
        parent, _, name = path.rpartition("/")
        (folder.child(parent) if parent else folder).write(name, files[path])

    run_concurrently(write, files)
    return folder, list(files)


def _parent(chapter: Chapter) -> str:
    """Folder that contains the chapter's first run."""
    return chapter.studies[0].runs[0].folder.parent.uri


def _section(chapter: Chapter, studies: Sequence[StudyResults], suffix: str) -> Section:
    styles = charts.method_styles(chapter)
    drawn = [
        charts.accuracy_chart(study, styles, f"accuracy {study.study.label}{suffix}")
        for study in studies
    ]
    tables = [
        accuracy_table(chapter, studies),
        retention_table(chapter, studies),
        judge_table(chapter, studies),
        *ablation_tables(chapter, studies),
        hard_table(chapter, studies),
    ]
    for study in studies:
        tables += [types_table(study), changes_table(study), lost_rows_table(study)]
        tables += [efficiency_table(chapter, study), slowest_table(study), errors_table(study)]
    named = [replace(table, name=slug(table.name + suffix)) for table in tables if table]
    return Section(chapter.title, [chart for chart in drawn if chart], named)


def _summary(chapters: Sequence[Chapter], studies: Sequence[Sequence[StudyResults]]) -> str:
    metrics = [
        result.metrics for chapter in studies for study in chapter for result in study.results
    ]
    rows, errors = (sum(int(run[f"rows_{name}"]) for run in metrics) for name in ("total", "error"))
    benchmarks = {study.benchmark.name for chapter in chapters for study in chapter.studies}
    return (
        f"{_count(len(metrics), 'run')} on {_count(len(benchmarks), 'benchmark')}:"
        f" {_count(rows, 'answer')}, {_count(errors, 'error')} among them."
        " Ranges are 95 % intervals. Figures of the paper are marked as published."
    )


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"


def _sql(setup: queries.Setup, tables: Sequence[Table]) -> str:
    parts = [f"-- in {setup.folder or 'any folder'}\n{setup.sql}"]
    parts += [
        f"-- {' '.join(table.title.split())}\n{table.query}" for table in tables if table.query
    ]
    return "\n\n".join(parts) + "\n"
