"""Tables as CSV, Markdown and LaTeX. The same runs give the same bytes."""

import csv
import io
import re

from pipelines.report.table import Cell, Number, Row, Table
from pipelines.report.templates import LATEX_TEMPLATES, TEMPLATES

FORMULA_STARTS = (
    *("=", "+", "-", "@", "\t", "\r", "\n"),
    *("\uff1d", "\uff0b", "\uff0d", "\uff20"),  # full-width = + - @
)
"""Beginnings of a text that a spreadsheet evaluates as a formula."""
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
}
LATEX_PARAGRAPH = r">{\raggedright\arraybackslash}p{4cm}"
MAX_LINE_CHARACTERS = 28
"""Columns with a longer text are paragraphs in LaTeX."""


def as_csv(table: Table) -> str:
    """Returns one line per row. A column with intervals becomes three columns."""
    with_intervals = [table.has_intervals(column) for column in range(len(table.columns))]
    header = []
    for name, has_interval in zip(table.columns, with_intervals, strict=True):
        header += [name, f"{name} low", f"{name} high"] if has_interval else [name]
    # Column names are escaped as well: a type of question can be one.
    lines = [list(map(_no_formula, [*header, *table.csv_columns]))]
    if table.has_published:
        lines[0].insert(0, "Source")
    if table.has_groups:
        lines[0].insert(0, "Group")
    for group, rows in table.groups.items():
        for row in rows:
            line = [_no_formula(group)] if table.has_groups else []
            if table.has_published:
                line.append("published" if row.published else "ours")
            for cell, has_interval in zip(row.cells, with_intervals, strict=True):
                line += _fields(cell, has_interval)
            for cell in row.csv_cells or [None] * len(table.csv_columns):
                line += _fields(cell, False)
            lines.append(line)
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(lines)
    return out.getvalue()


def _fields(cell: Cell, has_interval: bool) -> list[str]:
    if isinstance(cell, Number):
        parts = [cell.value, cell.low, cell.high] if has_interval else [cell.value]
        return ["" if part is None else f"{part:.10g}" for part in parts]
    return [_no_formula(cell or ""), *(["", ""] if has_interval else [])]


def _no_formula(text: str) -> str:
    """Quotes a formula. A carriage return, which Python does not quote, would end the row."""
    text = text.replace("\r", " ")
    return f"'{text}" if text.lstrip(" ").startswith(FORMULA_STARTS) else text


def as_markdown(table: Table) -> str:
    """Returns a pipe table."""
    template = TEMPLATES.get_template("table.md.j2")
    return template.render(table=table, markdown_row=_markdown_row)


def _markdown_row(row: Row) -> str:
    cells = [_escape_markdown(_text(cell)) for cell in row.cells]
    if row.published:
        cells = [cell if cell == "-" else f"*{cell}*" for cell in cells]
        cells[0] += " (published)"
    return " | ".join(cells)


def _escape_markdown(text: str) -> str:
    """Escapes markup and removes line breaks, which would end a row."""
    return re.sub(r"([\\`*_\[\]<>|~#])", r"\\\1", " ".join(text.split()))


def _text(cell: Cell) -> str:
    if isinstance(cell, Number):
        return cell.text + (f" [{cell.interval}]" if cell.interval else "")
    return cell or "-"


def as_latex(table: Table) -> str:
    """Returns a table that shrinks to the width of the text, with small intervals.

    Published figures are in italics. More than three columns of intervals are too wide side by
    side: intervals then stand below their numbers.
    """
    width = len(table.columns)
    texts = [table.texts(column) for column in range(width)]
    wrapped = [any(len(text) > MAX_LINE_CHARACTERS for text in column) for column in texts]
    stacked = sum(map(table.has_intervals, range(width))) > 3
    alignment = [
        LATEX_PARAGRAPH if is_wrapped else "r" if column and not texts[column] else "l"
        for column, is_wrapped in enumerate(wrapped)
    ]

    def latex_row(row: Row) -> str:
        cells = [
            _latex_cell(cell, is_wrapped, stacked)
            for cell, is_wrapped in zip(row.cells, wrapped, strict=True)
        ]
        if row.published:
            cells = [rf"\textit{{{cell}}}" for cell in cells]
            cells[0] += r" {\scriptsize (published)}"
        return " & ".join(cells)

    template = LATEX_TEMPLATES.get_template("table.tex.j2")
    return template.render(table=table, alignment="".join(alignment), latex_row=latex_row) + "\n"


def _latex_heading(text: str) -> str:
    """A heading in two lines of similar length, if it is long."""
    words = text.split()
    if len(words) < 2 or len(text) < 8:
        return _escape_latex(text)
    splits = [(" ".join(words[:cut]), " ".join(words[cut:])) for cut in range(1, len(words))]
    first, second = min(splits, key=lambda lines: abs(len(lines[0]) - len(lines[1])))
    return rf"\shortstack{{{_escape_latex(first)}\\{_escape_latex(second)}}}"


def _latex_cell(cell: Cell, is_wrapped: bool, stacked: bool) -> str:
    if isinstance(cell, Number) and cell.interval:
        text = _escape_latex(cell.text)
        interval = rf"{{\scriptsize [{_escape_latex(cell.interval)}]}}"
        return rf"\shortstack[r]{{{text}\\{interval}}}" if stacked else f"{text} {interval}"
    if cell is None:
        return "--"
    if not is_wrapped:
        return _escape_latex(_text(cell))
    # Ids and paths have no spaces at which a line could break.
    words = ([word[at : at + 8] for at in range(0, len(word), 8)] for word in _text(cell).split())
    return " ".join(r"\allowbreak{}".join(map(_escape_latex, pieces)) for pieces in words)


def _escape_latex(text: str) -> str:
    """Escapes commands. LaTeX refuses unprintable characters, which become question marks."""
    printable = (letter if letter.isprintable() else "?" for letter in " ".join(text.split()))
    return "".join(LATEX_ESCAPES.get(letter, letter) for letter in printable)


TEMPLATES.filters["markdown"] = _escape_markdown
LATEX_TEMPLATES.filters |= {"latex": _escape_latex, "latex_heading": _latex_heading}
