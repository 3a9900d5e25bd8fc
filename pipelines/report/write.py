"""A report of runs, written: the page, the figures, the tables in three formats, and the queries.

report(["results"])  # results/report/report.html, figures/*.svg, tables/*.csv, *.md, *.tex, queries.sql
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pipelines.report import charts, names, queries
from pipelines.report.accuracy import accuracy, hard, judged, retention
from pipelines.report.efficiency import ablations, efficiency
from pipelines.report.formats import as_csv, as_latex, as_markdown
from pipelines.report.gather import Chapter, gather
from pipelines.report.measure import Findings, measure
from pipelines.report.page import Figure, Section, page
from pipelines.report.pictures import pictures
from pipelines.report.rows import changed, errors, lost, slowest, types
from pipelines.report.table import Table, slug
from pipelines.results.storage import Folder, run_concurrently

PAGE, FIGURES, TABLES, QUERIES = "report.html", "figures", "tables", "queries.sql"
FORMATS = {"csv": as_csv, "md": as_markdown, "tex": as_latex}


def report(uris: Sequence[str], out: str | None = None) -> tuple[Folder, list[str]]:
    """Its folder (`out`, else `report` beside the runs) and the names of its files, the page first."""
    chapters, notes = gather(uris)
    findings = [[measure(study) for study in chapter.studies] for chapter in chapters]
    tables = [
        _tables(chapter, mine, len(chapters) > 1)
        for chapter, mine in zip(chapters, findings, strict=True)
    ]
    shown, missing = pictures(
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
    files = {PAGE: text, QUERIES: _sql(setup, every)}
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


def _tables(chapter: Chapter, findings: Sequence[Findings], several: bool) -> list[Table]:
    whole = [accuracy(chapter, findings), retention(chapter, findings), judged(chapter, findings)]
    whole += [*ablations(chapter, findings), hard(chapter, findings)]
    for each in findings:
        whole += [
            types(each),
            changed(each),
            lost(each),
            efficiency(chapter, each),
            slowest(each),
            errors(each),
        ]
    end = f" {chapter.title}" if several else ""
    return [replace(table, name=slug(table.name + end)) for table in whole if table is not None]


def _section(
    chapter: Chapter, findings: Sequence[Findings], tables: Sequence[Table], several: bool
) -> Section:
    known = charts.marks(chapter)
    end = f" {chapter.title}" if several else ""
    drawn = [
        Figure(f"accuracy {names.column(each.study)}{end}", charts.budgets(each, known))
        for each in findings
    ]
    drawn = [figure for figure in drawn if figure.svg]
    return Section(chapter.title, drawn, tables, charts.legend(known) if drawn else ())


def _title(chapters: Sequence[Chapter]) -> str:
    models = list(dict.fromkeys(chapter.model for chapter in chapters))
    return f"What dropping visual tokens does to {' and '.join(models)}"


def _facts(chapters: Sequence[Chapter], findings: Sequence[Sequence[Findings]]) -> list[str]:
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
