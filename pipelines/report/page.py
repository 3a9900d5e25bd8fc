"""One HTML file with everything in it: no script, nothing from elsewhere, every text from outside escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple

from pipelines.report.charts import Entry
from pipelines.report.pictures import Picture
from pipelines.report.queries import Setup
from pipelines.report.table import Cell, Number, Table, slug

WORDS = ' class="words"'
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
STYLE = """
:root { color-scheme: light; font: 16px/1.45 system-ui, sans-serif; color: #1a1a1a; background: #fff }
body { margin: 0 auto; padding: 1rem clamp(.8rem, 3vw, 2rem) 4rem; max-width: 78rem; overflow-wrap: break-word }
h1 { font-size: 1.6rem; line-height: 1.2; margin: .5rem 0 } h2 { font-size: 1.3rem; margin: 2.5rem 0 .5rem;
  border-top: 2px solid #1a1a1a; padding-top: .6rem } h3 { font-size: 1.05rem; margin: 1.8rem 0 .4rem }
p, li { max-width: 50rem } .note { color: #444; font-size: .87rem; margin: .4rem 0 }
nav ul, .legend { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: .3rem 1rem; margin: .5rem 0 }
.legend li { display: flex; align-items: center; gap: .35rem; font-size: .87rem; white-space: nowrap }
a { color: #00597a } .scroll { overflow-x: auto; border: 1px solid #ccc; border-radius: 4px }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; min-width: 100% }
th, td { padding: .3rem .6rem; text-align: right; vertical-align: top; white-space: nowrap }
th { font-weight: 600 } thead th { border-bottom: 2px solid #1a1a1a; vertical-align: bottom; white-space: normal }
tbody tr + tr td, tbody tr + tr th { border-top: 1px solid #e4e4e4 }
th:first-child { text-align: left; position: sticky; left: 0; background: inherit; min-width: 5rem; max-width: 40vw;
  white-space: normal; overflow-wrap: break-word; box-shadow: 1px 0 #ccc } thead, tbody tr { background: #fff }
.words { text-align: left; white-space: normal } td.words { min-width: 6rem; max-width: 22rem }
small { display: block; color: #555; font-size: .78rem } tbody tr.group, tr.group th { background: #eef1f4 }
tr.group th { position: static; max-width: none; text-align: left; box-shadow: none }
tr.group span { position: sticky; left: .6rem } tbody tr.published { background: #faf6ea; font-style: italic }
.tag { font-size: .72rem; border: 1px solid #8a6d00; color: #6b5500; border-radius: 3px; padding: 0 .25rem;
  font-style: normal; white-space: nowrap } details { margin: .4rem 0 } summary { cursor: pointer; font-size: .87rem }
pre { background: #f4f4f4; padding: .7rem; overflow-x: auto; font-size: .8rem; white-space: pre; overflow-wrap: normal }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 22rem), 1fr)); gap: 1rem }
.charts svg { width: 100%; height: auto } svg text { font: 12px system-ui, sans-serif; fill: #333 }
svg text.name { font-weight: 600; fill: #1a1a1a } figure { margin: 1rem 0 } img { max-width: 100%; height: auto }
figcaption { font-size: .9rem; max-width: 50rem } @media print { .scroll { overflow: visible } }
"""


class Figure(NamedTuple):
    """A chart."""

    title: str
    svg: str  # ours and safe


class Section(NamedTuple):
    """A chapter as it is shown."""

    title: str
    figures: Sequence[Figure]
    tables: Sequence[Table]
    legend: Sequence[Entry] = ()  # of the figures


def page(
    title: str,
    facts: Sequence[str],
    sections: Sequence[Section],
    pictures: Sequence[Picture],
    setup: Setup,
) -> str:
    """facts: lines at the top: what was run, and what is missing."""
    titles = [
        *(section.title for section in sections),
        *(["Pictures"] if pictures else []),
        "From rows to numbers",
    ]
    links = "".join(f'<li><a href="#{slug(name)}">{escape(name)}</a></li>' for name in titles)
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>",
        f"<h1>{escape(title)}</h1>",
        *(f"<p>{escape(fact)}</p>" for fact in facts),
        f"<nav aria-label='Chapters'><ul>{links}</ul></nav>",
        *(_section(section) for section in sections),
        _pictures(pictures),
        _origin(setup),
        "</body></html>",
    ]
    return "\n".join(filter(None, parts)) + "\n"


def _section(section: Section) -> str:
    figures = f'<div class="charts">{"".join(figure.svg for figure in section.figures)}</div>'
    legend = f'<ul class="legend">{"".join(f"<li>{key} {escape(name)}</li>" for key, name in section.legend)}</ul>'
    parts = [f'<h2 id="{slug(section.title)}">{escape(section.title)}</h2>']
    parts += [legend if section.legend else "", figures if section.figures else ""]
    return _lines(filter(None, [*parts, *map(_table, section.tables)]))


def _table(table: Table) -> str:
    words = [
        any(isinstance(row.cells[place], str) for row in table.rows)
        for place in range(len(table.columns))
    ]
    head = "".join(
        f'<th scope="col"{WORDS if text else ""}>{escape(name)}</th>'
        for name, text in zip(table.columns, words, strict=True)
    )
    lines = []
    group = ""
    for row in table.rows:
        if row.group != group:
            group = row.group
            across = f'colspan="{len(table.columns)}" scope="rowgroup"'
            lines.append(f'<tr class="group"><th {across}><span>{escape(group)}</span></th></tr>')
        first, *rest = row.cells
        tag = ' <span class="tag">published</span>' if row.published else ""
        cells = "".join(_cell(cell, text) for cell, text in zip(rest, words[1:], strict=True))
        kind = ' class="published"' if row.published else ""
        lines.append(f'<tr{kind}><th scope="row">{_words(first)}{tag}</th>{cells}</tr>')
    body = f"<table><thead><tr>{head}</tr></thead>\n<tbody>{_lines(lines)}</tbody></table>"
    parts = [f"<h3>{escape(table.title)}</h3>", f'<div class="scroll" tabindex="0">{body}</div>']
    parts += [f'<p class="note">{escape(table.note)}</p>'] if table.note else []
    parts += (
        [_query("The query that brings these numbers from the rows", table.query)]
        if table.query
        else []
    )
    return "\n".join(parts)


def _lines(lines: Iterable[str]) -> str:
    return "\n".join(lines)


def _cell(cell: Cell, words: bool) -> str:
    return f"<td{WORDS if words else ''}>{_words(cell)}</td>"


def _words(cell: Cell) -> str:
    if isinstance(cell, Number):
        return cell.shown() + (f"<small>{cell.range()}</small>" if cell.range() else "")
    return escape(cell) if cell else "-"


def _query(title: str, sql: str) -> str:
    return f"<details><summary>{escape(title)}</summary><pre>{escape(sql)}</pre></details>"


def _pictures(pictures: Sequence[Picture]) -> str:
    if not pictures:
        return ""
    figures = "\n".join(
        f'<figure><h3>{escape(each.title)}</h3><img src="{escape(each.uri)}" alt="{escape(each.title)}" loading="lazy">'
        f"<figcaption>{escape(each.caption)}</figcaption></figure>"
        for each in pictures
    )
    return f'<h2 id="pictures">Pictures</h2>\n{figures}'


def _origin(setup: Setup) -> str:
    return f"""<h2 id="from-rows-to-numbers">From rows to numbers</h2>
<p>Tables have the queries that bring their numbers from the answers, in Parquet files of one row a question; the note
of a table says which of them are no sums of rows, and how they are made. In the folder {escape(setup.base)}, start
DuckDB and make the view that the queries read; queries.sql, beside this page, holds it and all of them. Intervals and
p-values are computed from the same rows: Wilson's interval where each image or video has one right-or-wrong question,
else a bootstrap over images and videos with the runs' seed. python jobs/score.py RUN --against VANILLA prints them
again, of accuracy and of what is kept of it.</p>
{_query("The view", setup.sql)}"""
