"""Writes the report of runs: the page, the charts, the tables in three formats, and the queries.

write_report(["results"])  # results/report/report.html, figures/*.svg, tables/*.csv, *.md, *.tex
"""

import base64
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from pipelines.report import queries
from pipelines.report.charts import Chart, accuracy_charts, prefill_charts
from pipelines.report.measurements import measure
from pipelines.report.pictures import load_pictures
from pipelines.report.published import with_published
from pipelines.report.runs import collect_runs
from pipelines.report.table import Table
from pipelines.report.table_formats import as_csv, as_latex, as_markdown
from pipelines.report.tables import make_tables
from pipelines.report.templates import TEMPLATES, sentences, slug
from pipelines.results.storage import Folder, run_concurrently

PAGE_FILE, QUERIES_FILE = "report.html", "queries.sql"
CHARTS_FOLDER, TABLES_FOLDER = "figures", "tables"
TABLE_FORMATS = {"csv": as_csv, "md": as_markdown, "tex": as_latex}


class Section(NamedTuple):
    """A section of the page."""

    title: str
    charts: Sequence[Chart]
    tables: Sequence[Table] = ()


def write_report(uris: Sequence[str], output: str | None = None) -> tuple[Folder, list[str]]:
    """Returns the report's folder and the names of its files, the page first.

    uris: folders of runs, or folders that contain some
    output: the report's folder; `report` beside the runs by default
    """
    chapters, notes = collect_runs(uris)
    chapters = [
        with_published(replace(chapter, studies=tuple(map(measure, chapter.studies))))
        for chapter in chapters
    ]
    sections = []
    for chapter in chapters:
        # Names of tables and charts must be unique in a report.
        suffix = f" {chapter.title}" if len(chapters) > 1 else ""
        tables = [replace(table, name=slug(table.name + suffix)) for table in make_tables(chapter)]
        sections.append(Section(chapter.title, accuracy_charts(chapter, suffix), tables))
    sections += [Section(chart.title, [chart]) for chart in prefill_charts(chapters)]
    parents = [chapter.studies[0].runs[0].folder.parent for chapter in chapters]
    pictures, picture_notes = load_pictures(
        list(dict.fromkeys([*uris, *(parent.uri for parent in parents)]))
    )
    setup = queries.setup(chapters)
    models = " and ".join(dict.fromkeys(chapter.model for chapter in chapters))
    summary = sentences("summary", [study for chapter in chapters for study in chapter.studies])
    page = TEMPLATES.get_template("page.html.j2").render(
        title=f"What dropping visual tokens does to {models}",
        facts=[summary, *notes, *picture_notes],
        sections=sections,
        pictures=pictures,
        setup=setup,
    )
    tables = [table for section in sections for table in section.tables]
    sql = "\n\n".join(
        [f"-- in {setup.folder or 'any folder'}\n{setup.sql}"]
        + [f"-- {' '.join(table.title.split())}\n{table.query}" for table in tables if table.query]
    )
    files = {PAGE_FILE: page.encode(), QUERIES_FILE: f"{sql}\n".encode()}
    for section in sections:
        for chart in section.charts:
            files[f"{CHARTS_FOLDER}/{slug(chart.title)}.svg"] = chart.svg
        for table in section.tables:
            for extension, format_table in TABLE_FORMATS.items():
                files[f"{TABLES_FOLDER}/{table.name}.{extension}"] = format_table(table).encode()
    folder = Folder.of(output) if output else parents[0].child("report")

    def write(path: str) -> None:
        parent, _, name = path.rpartition("/")
        (folder.child(parent) if parent else folder).write(name, files[path])

    run_concurrently(write, files)
    return folder, list(files)


def _data_uri(chart: Chart) -> str:
    """The chart as an image of its own: styles and ids inside do not touch the page."""
    return f"data:image/svg+xml;base64,{base64.b64encode(chart.svg).decode()}"


TEMPLATES.filters["data_uri"] = _data_uri
