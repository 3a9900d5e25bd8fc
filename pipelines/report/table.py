"""A table as all forms of a report have it: cells that know their number, its interval and how many digits it has."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from pipelines.metrics.intervals import Interval


class Number(NamedTuple):
    """A number as it is shown, in the unit of its column, perhaps with its 95 % interval."""

    value: float
    low: float | None = None
    high: float | None = None
    digits: int = 1

    def shown(self) -> str:
        return _fixed(self.value, self.digits)

    def range(self) -> str:
        """`54.4 to 69.8`; empty where there is no interval."""
        if self.low is None or self.high is None:
            return ""
        return f"{_fixed(self.low, self.digits)} to {_fixed(self.high, self.digits)}"


Cell = str | Number | None


class Row(NamedTuple):
    cells: tuple[Cell, ...]
    group: str = ""  # rows of one group stand together, below its name
    published: bool = False  # not ours: the paper's
    aside: tuple[
        Cell, ...
    ] = ()  # of the columns that only a file for programs has; empty where nothing is known


@dataclass(frozen=True)
class Table:
    name: str  # of its files
    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    note: str = ""
    query: str = ""  # SQL that brings its numbers from the rows
    aside: tuple[str, ...] = ()  # more columns, of the CSV alone

    @property
    def grouped(self) -> bool:
        return any(row.group for row in self.rows)

    @property
    def compared(self) -> bool:
        """Does it hold figures of the paper?"""
        return any(row.published for row in self.rows)

    def ranged(self, column: int) -> bool:
        """Does a column have intervals?"""
        cells = [row.cells[column] for row in self.rows]
        return any(isinstance(cell, Number) and cell.low is not None for cell in cells)


def percent(metrics: Mapping[str, float], name: str, most: float = 1.0) -> Number | None:
    """A metric as a percentage, or of `most` points, with its interval if it has one."""
    if name not in metrics:
        return None
    scale, digits = (most, 0) if most > 1 else (100.0, 1)
    ends = [metrics.get(f"{name}_ci_{end}") for end in ("low", "high")]
    low, high = (None if end is None else scale * end for end in ends)
    return Number(scale * metrics[name], low, high, digits)


def number(value: float | None, digits: int = 1) -> Number | None:
    return None if value is None else Number(value, digits=digits)


def ranged(interval: Interval, scale: float = 100.0, digits: int = 1) -> Number:
    return Number(scale * interval.value, scale * interval.low, scale * interval.high, digits)


def significant(value: float | None) -> Number | None:
    """With three digits that mean something."""
    if value is None:
        return None
    return Number(
        value, digits=next((places for places in range(6) if abs(value) * 10**places >= 100), 6)
    )


def faster(above: float | None, below: float | None) -> Number | None:
    """A speed-up, where both are known."""
    return Number(above / below, digits=2) if above and below else None


def together(rows: Iterable[Row]) -> tuple[Row, ...]:
    """Rows of one group side by side, groups in the order in which they first come."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.group, []).append(row)
    return tuple(row for each in groups.values() for row in each)


def slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")


def _fixed(value: float, digits: int) -> str:
    text = f"{value:,.{digits}f}"
    return (
        text.removeprefix("-") if float(text.replace(",", "")) == 0 else text
    )  # no minus before nothing
