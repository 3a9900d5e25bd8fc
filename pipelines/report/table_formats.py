"""Tables as CSV, Markdown and LaTeX. The same runs give the same bytes."""

import csv
import io
import re
import textwrap

from pipelines.report.table import Number, Table
from pipelines.report.templates import LATEX_TEMPLATES, TEMPLATES

FORMULA_STARTS = (
    *("=", "+", "-", "@", "\t", "\r", "\n"),
    *("\uff1d", "\uff0b", "\uff0d", "\uff20"),  # full-width = + - @
)
"""Beginnings of a text that a spreadsheet evaluates as a formula."""
BREAK = "\0"
LATEX_ESCAPES = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\symbol{34}",
    # At the beginning of a row, these would be arguments of the line break before it.
    "[": "{[}",
    "*": "{*}",
    BREAK: r"\allowbreak{}",
}


def as_csv(table: Table) -> str:
    """Returns one line per row. A column with intervals becomes three columns."""
    with_intervals = [table.has_intervals(column) for column in range(len(table.columns))]
    has_groups, has_published = any(table.groups), table.has_published
    header = ["Group"] * has_groups + ["Source"] * has_published
    for name, has_interval in zip(table.columns, with_intervals, strict=True):
        header += [name, f"{name} low", f"{name} high"] if has_interval else [name]
    # Column names are escaped as well: a type of question can be one.
    lines = [list(map(_field, header))]
    for group, rows in table.groups.items():
        for row in rows:
            source = "published" if row.published else "ours"
            line = [_field(group)] * has_groups + [source] * has_published
            for cell, has_interval in zip(row.cells, with_intervals, strict=True):
                parts = cell[:3] if isinstance(cell, Number) else (cell, None, None)
                line += map(_field, parts if has_interval else parts[:1])
            lines.append(line)
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(lines)
    return out.getvalue()


def _field(value: str | float | None) -> str:
    """Quotes a formula. A carriage return, which Python does not quote, would end the row."""
    if isinstance(value, int | float):
        return f"{value:.10g}"
    text = (value or "").replace("\r", " ")
    return f"'{text}" if text.lstrip(" ").startswith(FORMULA_STARTS) else text


def as_markdown(table: Table) -> str:
    """Returns a pipe table."""
    return TEMPLATES.get_template("table.md.j2").render(table=table)


def as_latex(table: Table) -> str:
    """Returns a table that shrinks to the width of the text. Published figures are in italics."""
    return LATEX_TEMPLATES.get_template("table.tex.j2").render(table=table) + "\n"


def _escape_markdown(text: str) -> str:
    """Escapes markup and removes line breaks, which would end a row."""
    return re.sub(r"([\\`*_\[\]<>|~#])", r"\\\1", " ".join(text.split()))


def _escape_latex(text: str) -> str:
    """Escapes commands. LaTeX refuses unprintable characters, which become question marks."""
    text = "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split()))
    # Ids and paths have no spaces at which a line could break.
    text = re.sub(r"\S{21,}", lambda word: BREAK.join(textwrap.wrap(word[0], 8)), text)
    return "".join(LATEX_ESCAPES.get(letter, letter) for letter in text)


TEMPLATES.filters["markdown"] = _escape_markdown
LATEX_TEMPLATES.filters["latex"] = _escape_latex
