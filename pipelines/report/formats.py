"""Tables as CSV, Markdown and LaTeX. The same runs give the same bytes."""

from __future__ import annotations

import csv
import io
import re

from pipelines.report.table import Cell, Number, Table

DANGEROUS = (  # what makes a spreadsheet take a text for a formula; the last four are those of East Asian keyboards
    *("=", "+", "-", "@", "\t", "\r", "\n"),
    *("\uff1d", "\uff0b", "\uff0d", "\uff20"),
)
_LATEX = {
    **{each: f"\\{each}" for each in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
}


def as_csv(table: Table) -> str:
    """One line a row; a number with an interval takes three columns."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    header: list[str] = []
    for place, name in enumerate(table.columns):
        header += [name, f"{name} low", f"{name} high"] if table.ranged(place) else [name]
    apart = [*(["Group"] if table.grouped else []), *(["Source"] if table.compared else [])]
    writer.writerow([*apart, *map(_plain, header)])  # a type of question can be a column
    for row in table.rows:
        line = [_plain(row.group)] if table.grouped else []
        line += ["published" if row.published else "ours"] if table.compared else []
        for place, cell in enumerate(row.cells):
            line += _fields(cell, table.ranged(place))
        writer.writerow(line)
    return out.getvalue()


def _fields(cell: Cell, ranged: bool) -> list[str]:
    if isinstance(cell, Number):
        parts = [cell.value, cell.low, cell.high] if ranged else [cell.value]
        return ["" if part is None else f"{part:.10g}" for part in parts]
    return [_plain(cell or ""), *(["", ""] if ranged else [])]


def _plain(text: str) -> str:
    """A text that no spreadsheet calculates. A carriage return, which Python does not quote, would end the row."""
    text = text.replace("\r", " ")
    return f"'{text}" if text.lstrip(" ").startswith(DANGEROUS) else text


def as_markdown(table: Table) -> str:
    """A pipe table; groups are rows of their own, published figures stand in italics."""
    width = len(table.columns)
    lines = [f"### {_marked(table.title)}", "", _line([_marked(name) for name in table.columns])]
    lines.append(_line(["---"] + ["---:"] * (width - 1)))
    group = ""
    for row in table.rows:
        if row.group != group:
            lines.append(_line([f"**{_marked(row.group)}**"] + [""] * (width - 1)))
            group = row.group
        cells = [_marked(_shown(cell)) for cell in row.cells]
        if row.published:
            cells = [f"*{cell}*" if cell != "-" else cell for cell in cells]
            cells[0] += " (published)"
        lines.append(_line(cells))
    if table.note:
        lines += ["", _marked(table.note)]
    if table.query:
        lines += ["", "```sql", table.query, "```"]
    return "\n".join(lines) + "\n"


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _marked(text: str) -> str:
    """A text that is no markup; line breaks would end a row."""
    return re.sub(r"([\\`*_\[\]<>|~#])", r"\\\1", " ".join(text.split()))


def _shown(cell: Cell) -> str:
    if isinstance(cell, Number):
        return cell.shown() + (f" [{cell.range()}]" if cell.range() else "")
    return cell or "-"


def as_latex(table: Table) -> str:
    """A table for a paper (needs booktabs); intervals are small, published figures in italics."""
    width = len(table.columns)
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{_escaped(table.title)}}}", r"\small"]
    lines += [rf"\begin{{tabular}}{{l{'r' * (width - 1)}}}", r"\toprule"]
    lines += [" & ".join(map(_escaped, table.columns)) + r" \\"]
    group = ""
    if not table.grouped:
        lines.append(r"\midrule")
    for row in table.rows:
        if row.group != group:
            lines += [r"\midrule", rf"\multicolumn{{{width}}}{{c}}{{\textit{{{_escaped(row.group)}}}}} \\"]
            group = row.group
        cells = [_set(cell) for cell in row.cells]
        if row.published:
            cells = [rf"\textit{{{cell}}}" for cell in cells]
            cells[0] += r" {\scriptsize (published)}"
        lines.append(" & ".join(cells) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    lines += [rf"\par\smallskip\footnotesize {_escaped(table.note)}"] if table.note else []
    lines += [r"\end{table}"]
    return "\n".join(lines) + "\n"


def _set(cell: Cell) -> str:
    if isinstance(cell, Number) and cell.range():
        return rf"{_escaped(cell.shown())} {{\scriptsize [{_escaped(cell.range())}]}}"
    return _escaped(_shown(cell)) if cell is not None else "--"


def _escaped(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in " ".join(text.split()))
