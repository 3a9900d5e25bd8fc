"""A report of runs, written: the page, the figures, the tables in three formats, and the queries.

report(["results"])  # results/report/report.html, figures/*.svg, tables/*.csv, *.md, *.tex, queries.sql
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pipelines.report import charts, labels, queries
from pipelines.report.accuracy_tables import (
    accuracy_table,
    hard_table,
    judge_table,
    retention_table,
)
from pipelines.report.efficiency_tables import ablation_tables, efficiency_table
from pipelines.report.measurements import StudyResults, measure
from pipelines.report.page import Figure, Section, page
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

PAGE_FILE, FIGURES, TABLES, QUERIES = "report.html", "figures", "tables", "queries.sql"
FORMATS = {"csv": as_csv, "md": as_markdown, "tex": as_latex}


def write_report(uris: Sequence[str], out: str | None = None) -> tuple[Folder, list[str]]:
    """Its folder (`out`, else `report` beside the runs) and the names of its files, the page first."""
    chapters, notes = collect_runs(uris)
    findings = [[measure(study) for study in chapter.studies] for chapter in chapters]
    tables = [
        _tables(chapter, mine, len(chapters) > 1)
        for chapter, mine in zip(chapters, findings, strict=True)
    ]
    shown, missing = load_pictures(
        list(dict.fromkeys([*uris, *(_above(chapter) for chapter in chapters)]))
    )
    setup = queries.setup(chapters)
    speed = [
        Section(title, [Figure(title, svg)], [])
        for title, svg in charts.kernels(chapters, findings)
    ]
    sections = [
        _section(*each, len(chapters) > 1) for each in zip(chapters, findings, tables, strict=True)
    ]
    text = page(
        _title(chapters),
        [*_facts(chapters, findings), *notes, *missing],
        [*sections, *speed],
        shown,
        setup,
    )
    folder = Folder.of(out) if out else Folder.of(_above(chapters[0])).child("report")
    every = [table for each in tables for table in each]
    files = {PAGE_FILE: text, QUERIES: _sql(setup, every)}
    drawn = [
        (figure, section.legend) for section in [*sections, *speed] for figure in section.figures
    ]
    files |= {
        f"{FIGURES}/{slug(figure.title)}.svg": charts.alone(figure.svg, legend)
        for figure, legend in drawn
    }
    files |= {
        f"{TABLES}/{table.name}.{ending}": form(table)
        for table in every
        for ending, form in FORMATS.items()
    }
    run_concurrently(lambda name: _write(folder, name, files[name]), files)
    return folder, list(files)


def _write(folder: Folder, name: str, content: str) -> None:
    inside, _, last = name.rpartition("/")
    (folder.child(inside) if inside else folder).write(last, content.encode())


def _above(chapter: Chapter) -> str:
    """The folder in which a chapter's first run lies."""
    return chapter.studies[0].runs[0].folder.parent.uri


def _tables(chapter: Chapter, findings: Sequence[StudyResults], several: bool) -> list[Table]:
    whole = [
        accuracy_table(chapter, findings),
        retention_table(chapter, findings),
        judge_table(chapter, findings),
    ]
    whole += [*ablation_tables(chapter, findings), hard_table(chapter, findings)]
    for each in findings:
        whole += [
            types_table(each),
            changes_table(each),
            lost_rows_table(each),
            efficiency_table(chapter, each),
            slowest_table(each),
            errors_table(each),
        ]
    end = f" {chapter.title}" if several else ""
    return [replace(table, name=slug(table.name + end)) for table in whole if table is not None]


def _section(
    chapter: Chapter, findings: Sequence[StudyResults], tables: Sequence[Table], several: bool
) -> Section:
    known = charts.marks(chapter)
    end = f" {chapter.title}" if several else ""
    drawn = [
        Figure(f"accuracy {labels.benchmark_label(each.study)}{end}", charts.budgets(each, known))
        for each in findings
    ]
    drawn = [figure for figure in drawn if figure.svg]
    return Section(chapter.title, drawn, tables, charts.legend(known) if drawn else ())


def _title(chapters: Sequence[Chapter]) -> str:
    models = list(dict.fromkeys(chapter.model for chapter in chapters))
    return f"What dropping visual tokens does to {' and '.join(models)}"


def _facts(chapters: Sequence[Chapter], findings: Sequence[Sequence[StudyResults]]) -> list[str]:
    results = [result for mine in findings for each in mine for result in each.results]
    rows = sum(int(result.metrics["rows_total"]) for result in results)
    errors = sum(int(result.metrics["rows_error"]) for result in results)
    benchmarks = {study.benchmark.name for chapter in chapters for study in chapter.studies}
    said = f"{_many(len(results), 'run')} on {_many(len(benchmarks), 'benchmark')}: {rows:,} answers, {errors:,} of them"
    return [
        f"{said} errors. Ranges are 95 % intervals; what is the paper's and not ours is marked as published."
    ]


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' * (count != 1)}"


def _sql(setup: queries.Setup, tables: Sequence[Table]) -> str:
    parts = [f"-- in {setup.base or 'any folder'}\n{setup.sql}"]
    parts += [
        f"-- {' '.join(table.title.split())}\n{table.query}" for table in tables if table.query
    ]
    return "\n\n".join(parts) + "\n"
