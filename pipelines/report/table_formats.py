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
    '"': r"\symbol{34}",
    "[": "{[}",  # it would be an option of the line's end before it, and so would a star
    "*": "{*}",
}
LINES = r">{\raggedright\arraybackslash}p{4cm}"
WIDE = 28  # characters of a text that LaTeX may set in several lines


def as_csv(table: Table) -> str:
    """One line a row; a number with an interval takes three columns."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    header: list[str] = []
    for place, name in enumerate(table.columns):
        header += [name, f"{name} low", f"{name} high"] if table.ranged(place) else [name]
    apart = [*(["Group"] if table.grouped else []), *(["Source"] if table.compared else [])]
    writer.writerow(
        [*apart, *map(_plain, [*header, *table.aside])]
    )  # a type of question can be a column
    for row in table.rows:
        line = [_plain(row.group)] if table.grouped else []
        line += ["published" if row.published else "ours"] if table.compared else []
        for place, cell in enumerate(row.cells):
            line += _fields(cell, table.ranged(place))
        for cell in row.aside or [None] * len(table.aside):
            line += _fields(cell, False)
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
    """A table for a paper; intervals are small, published figures in italics. It shrinks to the width of the text."""
    width = len(table.columns)
    wrapped = [_wrapped(table, place) for place in range(width)]
    stacked = (
        sum(map(table.ranged, range(width))) > 3
    )  # intervals below their numbers: side by side is too wide
    lines = [
        "% \\usepackage{array,booktabs,graphicx}; compile letters that are not Latin with XeLaTeX or LuaLaTeX"
    ]
    lines += [r"\begin{table}", r"\centering", rf"\caption{{{_escaped(table.title)}}}", r"\small"]
    lines += [r"\setlength{\tabcolsep}{3pt}"] if width > 8 else []
    lines += [r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"]
    kinds = ("l" if not place or _texts(table, place) else "r" for place in range(width))
    columns = (LINES if wraps else kind for wraps, kind in zip(wrapped, kinds, strict=True))
    lines += [rf"\begin{{tabular}}{{{''.join(columns)}}}", r"\toprule"]
    lines += [" & ".join(map(_heading, table.columns)) + r" \\"]
    group = ""
    if not table.grouped:
        lines.append(r"\midrule")
    for row in table.rows:
        if row.group != group:
            lines += [
                r"\midrule",
                rf"\multicolumn{{{width}}}{{c}}{{\textit{{{_escaped(row.group)}}}}} \\",
            ]
            group = row.group
        cells = [_set(cell, wraps, stacked) for cell, wraps in zip(row.cells, wrapped, strict=True)]
        if row.published:
            cells = [rf"\textit{{{cell}}}" for cell in cells]
            cells[0] += r" {\scriptsize (published)}"
        lines.append(" & ".join(cells) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}}"]
    lines += [rf"\par\smallskip\footnotesize {_escaped(table.note)}"] if table.note else []
    lines += [r"\end{table}"]
    return "\n".join(lines) + "\n"


def _texts(table: Table, place: int) -> list[str]:
    """What a column says in words."""
    return [cell for row in table.rows if isinstance(cell := row.cells[place], str)]


def _wrapped(table: Table, place: int) -> bool:
    return any(len(text) > WIDE for text in _texts(table, place))


def _heading(text: str) -> str:
    """In two lines if it has words for them."""
    words = text.split()
    if len(words) < 2 or len(text) < 8:
        return _escaped(text)
    cut = min(
        range(1, len(words)),
        key=lambda at: abs(len(" ".join(words[:at])) - len(" ".join(words[at:]))),
    )
    first, second = (_escaped(" ".join(part)) for part in (words[:cut], words[cut:]))
    return rf"\shortstack{{{first}\\{second}}}"


def _set(cell: Cell, wraps: bool, stacked: bool) -> str:
    if isinstance(cell, Number) and cell.range():
        shown, between = _escaped(cell.shown()), rf"{{\scriptsize [{_escaped(cell.range())}]}}"
        return rf"\shortstack[r]{{{shown}\\{between}}}" if stacked else f"{shown} {between}"
    if cell is None:
        return "--"
    if wraps:  # an id or a path has no spaces to break at
        words = (
            [word[at : at + 8] for at in range(0, len(word), 8)] for word in _shown(cell).split()
        )
        return " ".join(r"\allowbreak{}".join(map(_escaped, parts)) for parts in words)
    return _escaped(_shown(cell))


def _escaped(text: str) -> str:
    """As it reads; what cannot be printed, and LaTeX refuses, is a question mark."""
    seen = (letter if letter.isprintable() else "?" for letter in " ".join(text.split()))
    return "".join(_LATEX.get(letter, letter) for letter in seen)
