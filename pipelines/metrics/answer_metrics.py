"""Metrics of the official scorers, as sums over rows, so that each of them can have an interval.

A metric is a weighted sum of ratios of two sums over rows: a share is right rows / rows; F1 is
2 TP / (2 TP + FP + FN), and POPE's is a third of each split's; MME's total is a hundred times each
of 28 shares. Both columns of a ratio, (N,), are 0 for rows that do not count in it.
`pipelines.metrics.intervals` draws media again and sums them anew.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines.metrics.intervals import Floats, RatioSum

Bools = NDArray[np.bool_]
Texts = NDArray[np.object_]
Metric = RatioSum

# Columns of the answers that AnswerArrays reads.
COLUMNS = (
    *("row_id", "type", "media", "question", "reference", "options", "meta"),
    *("score", "correct", "status"),
)


def value(metric: Metric) -> float:
    """Return the number. A ratio by zero, e.g. the precision without a yes, counts as 0."""
    ratios = [ratio for ratio in zip(*metric, strict=True) if ratio[2].sum()]
    return float(sum(weight * above.sum() / below.sum() for weight, above, below in ratios))


def is_mean(metric: Metric) -> bool:
    """Is it the plain mean of its only numerator over some rows?"""
    return list(metric.weights) == [1] and bool(np.isin(metric.denominators[0], (0, 1)).all())


def ratio(numerator: Floats | Bools, denominator: Floats | Bools) -> Metric:
    """Return the sum of one column over that of another."""
    return Metric([1.0], [numerator.astype(np.float64)], [denominator.astype(np.float64)])


def mean_over(values: Floats | Bools, rows: Bools) -> Metric:
    """Return the mean of `values` over `rows`. Other rows may be NaN."""
    return ratio(np.where(rows, values, 0.0), rows)


def weighted_sum(metrics: Sequence[Metric], weight: float = 1.0) -> Metric:
    """Return the sum of metrics, each times `weight`."""
    return Metric(
        [weight * own for metric in metrics for own in metric.weights],
        [column for metric in metrics for column in metric.numerators],
        [column for metric in metrics for column in metric.denominators],
    )


def as_floats(column: pa.ChunkedArray) -> Floats:
    """Return a column of numbers, NaN where it is empty."""
    return np.asarray(pc.fill_null(pc.cast(column, pa.float64()), float("nan")), dtype=np.float64)


def with_column(table: pa.Table, name: str, column: pa.Array) -> pa.Table:
    """Return the table with other values in one of its columns."""
    return table.set_column(table.column_names.index(name), name, column)


class AnswerArrays:
    """The answers of a run as arrays over its rows, in the order of the table."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    @cached_property
    def scores(self) -> Floats:
        """The score of each row, 0 to 1: `score`, else `correct`. NaN for errors and no score."""
        score = pc.coalesce(self.table["score"], pc.cast(self.table["correct"], pa.float64()))
        score = pc.if_else(pc.equal(self.table["status"], "ok"), score, None)
        return as_floats(score)

    @cached_property
    def scored(self) -> Bools:
        return ~np.isnan(self.scores)

    @cached_property
    def correct(self) -> Bools:
        return np.asarray(self.scores == 1)

    @cached_property
    def types(self) -> Texts:
        return self._texts("type")

    def scored_keys(self, keys: Texts) -> list[str]:
        """Return the keys that scored rows have, sorted, without the empty one."""
        return sorted(set(keys[self.scored]) - {""})

    @cached_property
    def ids(self) -> Texts:
        return self._texts("row_id")

    @cached_property
    def chances(self) -> Floats:
        """The chance of guessing each row's option, 1 / options; NaN without options."""
        options = as_floats(pc.list_value_length(self.table["options"]))
        return np.where(options > 0, 1.0 / np.maximum(options, 1.0), np.nan)

    def meta(self, key: str) -> Texts:
        """Return the value of `key` in each row's meta; an empty text where it is missing."""
        column: Any = self.table["meta"]
        if column.null_count == len(column):
            return np.full(len(column), "", dtype=object)
        return np.asarray(pc.fill_null(pc.map_lookup(column, key, "first"), ""), dtype=object)

    def mean(self, rows: Bools | None = None) -> Metric:
        """Return the mean score, of all scored rows or of those among `rows`."""
        return mean_over(self.scores, self.scored if rows is None else self.scored & rows)

    def means_by(self, name: str, keys: Texts) -> dict[str, Metric]:
        """Return the mean score of each key as `name/key`. Rows with an empty key are in none."""
        return {f"{name}/{key}": self.mean(keys == key) for key in self.scored_keys(keys)}

    def _texts(self, name: str) -> Texts:
        return np.asarray(pc.fill_null(self.table[name], ""), dtype=object)


def correct_groups(answers: AnswerArrays, group: NDArray[np.int64]) -> tuple[Bools, Bools]:
    """Return, for rows that count together, the row that stands for each group, and all-correct.

    Both are over rows: is this the first row of a group whose rows are all scored, and are all
    rows of its group correct. A group with an unscored row is represented by no row.
    """
    wrong = np.bincount(group, weights=~answers.correct)
    unscored = np.bincount(group, weights=~answers.scored)
    first = np.zeros(len(group), dtype=bool)
    first[np.unique(group, return_index=True)[1]] = True
    return first & (unscored == 0)[group], (wrong == 0)[group]


class Scorer(Protocol):
    """The part of a benchmark that summarises its answers."""

    name: str
    headline: str
    headline_max: float

    def metrics(self, answers: AnswerArrays) -> dict[str, Metric]: ...

    @property
    def chances(self) -> Mapping[str, float]: ...
