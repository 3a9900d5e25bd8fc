"""Tables, independent of the format in which they are written. Numbers keep their interval."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from pipelines.metrics.intervals import Interval
from pipelines.report.labels import budget_label, method_label, texts
from pipelines.report.runs import Chapter, Study


class Number(NamedTuple):
    """A number in the unit of its column, with its 95 % interval if it has one."""

    value: float
    low: float | None = None
    high: float | None = None
    digits: int = 1  # decimal places

    @property
    def text(self) -> str:
        return _fixed(self.value, self.digits)

    @property
    def interval(self) -> str:
        """Text of the interval, `54.4 to 69.8`. Empty without one."""
        if self.low is None or self.high is None:
            return ""
        return f"{_fixed(self.low, self.digits)} to {_fixed(self.high, self.digits)}"


Cell = str | Number | None


class Row(NamedTuple):
    cells: tuple[Cell, ...]
    group: str = ""
    """Rows of a group stand together below its name."""
    published: bool = False
    """Holds figures of the paper instead of measured ones."""
    csv_cells: tuple[Cell, ...] = ()
    """Cells of `Table.csv_columns`; none if their values are unknown."""


@dataclass(frozen=True)
class Table:
    name: str  # of its files, without extension
    title: str
    columns: tuple[str, ...]
    rows: Sequence[Row]
    note: str = ""
    query: str = ""
    """SQL that computes the numbers from the answers."""
    csv_columns: tuple[str, ...] = ()
    """Additional columns of the CSV file."""

    @property
    def groups(self) -> dict[str, list[Row]]:
        """Rows by group, in the order of the groups' first rows."""
        groups: dict[str, list[Row]] = {}
        for row in self.rows:
            groups.setdefault(row.group, []).append(row)
        return groups

    @property
    def has_groups(self) -> bool:
        return any(row.group for row in self.rows)

    @property
    def has_published(self) -> bool:
        return any(row.published for row in self.rows)

    def has_intervals(self, column: int) -> bool:
        cells = (row.cells[column] for row in self.rows)
        return any(isinstance(cell, Number) and cell.low is not None for cell in cells)

    def texts(self, column: int) -> list[str]:
        """Cells of a column that are words."""
        return [cell for row in self.rows if isinstance(cell := row.cells[column], str)]


def make_table(
    kind: str,
    subject: Chapter | Study,
    columns: Sequence[str],
    rows: Sequence[Row],
    query: str = "",
    *,
    more_notes: str = "",
    csv_columns: Sequence[str] = (),
    **facts: Any,
) -> Table | None:
    """A table with the title and note of its kind in texts.yaml; None without rows.

    facts: values of the names in braces in the note
    """
    if not rows:
        return None
    text = texts()["tables"][kind]
    name = f"{kind}-{subject.column}" if isinstance(subject, Study) else kind
    title, note = f"{text['title']}: {subject.title}", text["note"].format(**facts) + more_notes
    return Table(name, title, tuple(columns), rows, note, query, tuple(csv_columns))


def method_row(
    method: str,
    budget: str,
    cells: Sequence[Cell],
    published: bool = False,
    csv_cells: Sequence[Cell] = (),
) -> Row:
    """A row that begins with the method's label, in the group of its budget."""
    cells = (method_label(method), *cells)
    return Row(cells, budget_label(budget), published, tuple(csv_cells))


def number(value: float | None, digits: int = 1) -> Number | None:
    return None if value is None else Number(value, digits=digits)


def percent(metrics: Mapping[str, float], name: str, scale: float = 1.0) -> Number | None:
    """A metric with its interval: in percent, or in points if the scale is above 1."""
    if name not in metrics:
        return None
    factor, digits = (scale, 0) if scale > 1 else (100.0, 1)
    ends = [metrics.get(f"{name}_ci_{end}") for end in ("low", "high")]
    low, high = (None if end is None else factor * end for end in ends)
    return Number(factor * metrics[name], low, high, digits)


def interval_number(interval: Interval, factor: float = 100.0, digits: int = 1) -> Number:
    value, low, high = (factor * part for part in interval)
    return Number(value, low, high, digits)


def significant(value: float | None) -> Number | None:
    """A number with three significant digits."""
    if value is None:
        return None
    digits = next((digits for digits in range(6) if abs(value) * 10**digits >= 100), 6)
    return Number(value, digits=digits)


def ratio(above: float | None, below: float | None) -> Number | None:
    """A speed-up; None unless both values are known."""
    return Number(above / below, digits=2) if above and below else None


def slug(text: str) -> str:
    """A text as a file name or an anchor."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")


def _fixed(value: float, digits: int) -> str:
    text = f"{value:,.{digits}f}"
    is_zero = float(text.replace(",", "")) == 0
    return text.removeprefix("-") if is_zero else text  # no "-0.0"
