"""Tables, independent of the format in which they are written. Numbers keep their interval."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from pipelines.report.runs import Result
from pipelines.report.templates import budget_label

MAX_CHARACTERS = 160
"""Length of a text from the data."""


class Number(NamedTuple):
    """A number in the unit of its column, with its 95 % interval if it has one."""

    value: float
    low: float | None = None
    high: float | None = None
    digits: int = 1  # decimal places

    @property
    def text(self) -> str:
        return self._fixed(self.value)

    @property
    def interval(self) -> str:
        """Text of the interval, `54.4 to 69.8`. Empty without one."""
        if self.low is None or self.high is None:
            return ""
        return f"{self._fixed(self.low)} to {self._fixed(self.high)}"

    def _fixed(self, value: float) -> str:
        text = f"{value:,.{self.digits}f}"
        return text.removeprefix("-") if not text.strip("-0.") else text  # no "-0.0"


Cell = str | Number | None


class Column(NamedTuple):
    title: str
    key: str
    """Name of a metric or of another value of the row."""
    form: str | int = "text"
    """Number of decimal places, or `percent`, `significant`, `text` or `short`."""

    def cell(self, values: Mapping[str, Any]) -> Cell:
        """The value that a row has in this column."""
        value = values.get(self.key)
        if value is None:
            return None
        if self.form == "text":
            return str(value) or None
        if self.form == "short":
            text = " ".join(value.split())
            return text if len(text) <= MAX_CHARACTERS else f"{text[: MAX_CHARACTERS - 3]}..."
        if self.form == "significant":  # three digits
            digits = next((count for count in range(6) if abs(value) * 10**count >= 100), 6)
            return Number(value, digits=digits)
        factor, digits = (100.0, 1) if self.form == "percent" else (1, int(self.form))
        ends = (values.get(f"{self.key}_ci_{end}") for end in ("low", "high"))
        low, high = (None if end is None else factor * end for end in ends)
        return Number(factor * value, low, high, digits)


class Row(NamedTuple):
    cells: tuple[Cell, ...]
    group: str = ""
    """Rows of a group stand together below its name."""
    published: int = 0
    """Number of the paper's table whose figures these are; 0 for measured ones."""


def result_rows(
    columns: Sequence[Column], results: Iterable[Result], label: str = "{}"
) -> list[Row]:
    """A row per result, which begins with the label of its method."""
    return [
        Row(
            (label.format(point.label), *(column.cell(metrics) for column in columns)),
            budget_label(point.budget),
            paper_table,
        )
        for point, metrics, paper_table in results
    ]


@dataclass(frozen=True)
class Table:
    name: str  # of its files, without extension
    title: str
    columns: tuple[str, ...]
    rows: Sequence[Row]
    note: str = ""
    query: str = ""
    """SQL that computes the numbers from the answers."""
    csv_only: int = 0
    """Number of columns at the end that only the CSV file has."""

    @property
    def shown(self) -> tuple[str, ...]:
        """Columns of the other formats."""
        return self.columns[: len(self.columns) - self.csv_only]

    @property
    def groups(self) -> dict[str, list[Row]]:
        """Rows by group, in the order of the groups' first rows."""
        groups: dict[str, list[Row]] = {}
        for row in self.rows:
            groups.setdefault(row.group, []).append(row)
        return groups

    @property
    def has_published(self) -> bool:
        return any(row.published for row in self.rows)

    def has_intervals(self, column: int) -> bool:
        cells = (row.cells[column] for row in self.rows)
        return any(isinstance(cell, Number) and cell.low is not None for cell in cells)

    def texts(self, column: int) -> list[str]:
        """Cells of a column that are words."""
        return [cell for row in self.rows if isinstance(cell := row.cells[column], str)]
