"""What the official scorers report, as sums over rows, so that each number can be given an interval.

A figure is a weighted sum of ratios of two sums over rows: a share is right rows by rows; F1 is 2 TP by 2 TP + FP + FN,
and POPE's is a third of each split's; MME's total is a hundred times each of 28 shares. `pipelines.metrics.intervals` draws
media again and adds up anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines.metrics.intervals import RatioSum

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Texts = NDArray[np.object_]

COLUMNS = (
    "row_id",
    "type",
    "media",
    "question",
    "reference",
    "options",
    "meta",
    "score",
    "correct",
    "status",
)


class RatioTerm(NamedTuple):
    weight: float
    above: Floats  # (N,) one a row; 0 for rows that have no part in it
    below: Floats


Metric = tuple[RatioTerm, ...]


def value(figure: Metric) -> float:
    """A ratio without anything below, as a precision without a yes, counts as 0."""
    return sum(weight * above.sum() / below.sum() for weight, above, below in figure if below.sum())


def has_rows(figure: Metric) -> bool:
    """Is there a row that it is about?"""
    return any(term.below.any() for term in figure)


def row_values(figure: Metric) -> Floats | None:
    """The values of a figure that is a plain mean over some rows; None if it is more."""
    if len(figure) == 1 and figure[0].weight == 1 and np.isin(figure[0].below, (0.0, 1.0)).all():
        return figure[0].above
    return None


def as_ratio_sum(figure: Metric) -> RatioSum:
    """The figure as `pipelines.metrics.intervals` draws it again."""
    return RatioSum(*zip(*figure, strict=True))


def mean_over(values: Floats | Bools, among: Bools) -> Metric:
    """The mean of `values` over the rows in `among`; none of the others may be NaN's business."""
    return (RatioTerm(1.0, np.where(among, values, 0.0).astype(np.float64), among.astype(np.float64)),)


def weighted_sum(figures: Mapping[str, Metric] | list[Metric], weight: float = 1.0) -> Metric:
    """A sum of figures, each times `weight`."""
    each = figures.values() if isinstance(figures, Mapping) else figures
    return tuple(term._replace(weight=weight * term.weight) for figure in each for term in figure)


class AnswerArrays:
    """The answers of a run as arrays over its rows, in the order of the table."""

    def __init__(self, answers: pa.Table) -> None:
        self.answers = answers

    def __len__(self) -> int:
        return int(self.answers.num_rows)

    @cached_property
    def worth(self) -> Floats:
        """What each row is worth, 0 to 1: its score, else whether it is right; NaN where nothing is known."""
        worth = pc.coalesce(self.answers["score"], pc.cast(self.answers["correct"], pa.float64()))
        known = pc.if_else(self.ok, worth, None)
        return np.asarray(pc.fill_null(known, float("nan")), dtype=np.float64)

    @cached_property
    def ok(self) -> Bools:
        return np.asarray(pc.equal(self.answers["status"], "ok"), dtype=bool)

    @cached_property
    def scored(self) -> Bools:
        return ~np.isnan(self.worth)

    @cached_property
    def right(self) -> Bools:
        return self.worth == 1

    @cached_property
    def types(self) -> Texts:
        return np.asarray(pc.fill_null(self.answers["type"], ""), dtype=object)

    @cached_property
    def ids(self) -> Texts:
        return np.asarray(self.answers["row_id"], dtype=object)

    @cached_property
    def questions(self) -> Texts:
        return np.asarray(pc.fill_null(self.answers["question"], ""), dtype=object)

    @cached_property
    def reference(self) -> Texts:
        """The first right answer of each row."""
        return np.array(
            [found[0] if found else "" for found in self.answers["reference"].to_pylist()],
            dtype=object,
        )

    @cached_property
    def chances(self) -> Floats:
        """One by the number of a row's options; NaN without any."""
        count = pc.cast(pc.list_value_length(self.answers["options"]), pa.float64())
        known = np.asarray(pc.fill_null(count, 0.0), dtype=np.float64)
        return np.divide(1.0, known, out=np.full(len(known), np.nan), where=known > 0)

    def meta(self, key: str) -> Texts:
        """What each row's meta says of `key`; an empty text where it says nothing."""
        column: Any = self.answers["meta"]
        if column.null_count == len(column):
            return np.full(len(self), "", dtype=object)
        return np.asarray(pc.fill_null(pc.map_lookup(column, key, "first"), ""), dtype=object)

    def by(self, name: str, keys: Texts, among: Bools | None = None) -> dict[str, Metric]:
        """The mean worth for each of the keys, `name/key`; rows with an empty key are in none."""
        among = self.scored if among is None else among
        found = sorted({key for key in keys[among] if key})
        return {
            f"{name}/{key}" if name else key: mean_over(self.worth, among & (keys == key))
            for key in found
        }


def correct_groups(sheet: AnswerArrays, group: NDArray[np.int64]) -> tuple[Bools, Bools]:
    """Of groups of rows that count together: the row that stands for each, and whether all of its group are right.

    Groups of which a row was not answered have nobody to stand for them.
    """
    groups = int(group.max()) + 1 if len(group) else 0
    wrong = np.bincount(group, weights=~sheet.right, minlength=groups)
    unknown = np.bincount(group, weights=~sheet.scored, minlength=groups)
    first = np.zeros(len(group), dtype=bool)
    first[np.unique(group, return_index=True)[1]] = True
    return first & (unknown == 0)[group], (wrong == 0)[group]


class Scorer(Protocol):
    """What is needed of a benchmark to sum up its answers."""

    @property
    def name(self) -> str: ...

    @property
    def headline(self) -> str: ...

    @property
    def most(self) -> float: ...

    def figures(self, sheet: AnswerArrays) -> dict[str, Metric]: ...

    def chance(self, type: str) -> float | None: ...
