"""Metrics of the official scorers, as sums over rows, so that each of them can have an interval.

A metric is a weighted sum of ratios of two sums over rows: a share is right rows / rows; F1 is
2 TP / (2 TP + FP + FN), and POPE's is a third of each split's; MME's total is a hundred times each
of 28 shares. `pipelines.metrics.intervals` draws media again and sums them anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines.metrics.intervals import Floats, RatioSum

Bools = NDArray[np.bool_]
Texts = NDArray[np.object_]

# Columns of the answers that AnswerArrays reads.
COLUMNS = (
    *("row_id", "type", "media", "question", "reference", "options", "meta"),
    *("score", "correct", "status"),
)


class RatioTerm(NamedTuple):
    """One weighted ratio; both columns, (N,), are 0 for rows that do not count in it."""

    weight: float
    numerator: Floats
    denominator: Floats


Metric = tuple[RatioTerm, ...]


def value(metric: Metric) -> float:
    """Return the number. A ratio by zero, e.g. the precision without a yes, counts as 0."""
    ratios = [term for term in metric if term.denominator.sum()]
    return float(sum(weight * above.sum() / below.sum() for weight, above, below in ratios))


def has_rows(metric: Metric) -> bool:
    """Does any row count in it?"""
    return any(term.denominator.any() for term in metric)


def row_values(metric: Metric) -> Floats | None:
    """Return the values of a metric that is a plain mean over some rows, else None."""
    if len(metric) == 1 and metric[0].weight == 1 and np.isin(metric[0].denominator, (0, 1)).all():
        return metric[0].numerator
    return None


def as_ratio_sum(metric: Metric) -> RatioSum:
    """Return the metric in the form that `pipelines.metrics.intervals` resamples."""
    return RatioSum(*zip(*metric, strict=True))


def mean_over(values: Floats | Bools, rows: Bools) -> Metric:
    """Return the mean of `values` over `rows`. Other rows may be NaN."""
    return (
        RatioTerm(1.0, np.where(rows, values, 0.0).astype(np.float64), rows.astype(np.float64)),
    )


def weighted_sum(metrics: Sequence[Metric], weight: float = 1.0) -> Metric:
    """Return the sum of metrics, each times `weight`."""
    return tuple(
        term._replace(weight=weight * term.weight) for metric in metrics for term in metric
    )


class AnswerArrays:
    """The answers of a run as arrays over its rows, in the order of the table."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @cached_property
    def scores(self) -> Floats:
        """The score of each row, 0 to 1: `score`, else `correct`. NaN for errors and no score."""
        score = pc.coalesce(self.table["score"], pc.cast(self.table["correct"], pa.float64()))
        score = pc.if_else(pc.equal(self.table["status"], "ok"), score, None)
        return np.asarray(pc.fill_null(score, float("nan")), dtype=np.float64)

    @cached_property
    def scored(self) -> Bools:
        return ~np.isnan(self.scores)

    @cached_property
    def correct(self) -> Bools:
        return np.asarray(self.scores == 1)

    @cached_property
    def types(self) -> Texts:
        return self._texts("type")

    @property
    def scored_types(self) -> list[str]:
        """The types of question that have scored rows, sorted."""
        return sorted(set(self.types[self.scored]) - {""})

    @cached_property
    def ids(self) -> Texts:
        return self._texts("row_id")

    @cached_property
    def questions(self) -> Texts:
        return self._texts("question")

    @cached_property
    def references(self) -> Texts:
        """The first right answer of each row."""
        lists = self.table["reference"].to_pylist()
        return np.array([answers[0] if answers else "" for answers in lists], dtype=object)

    @cached_property
    def chances(self) -> Floats:
        """The chance of guessing each row's option, 1 / options; NaN without options."""
        count = pc.cast(pc.list_value_length(self.table["options"]), pa.float64())
        options = np.asarray(pc.fill_null(count, 0.0), dtype=np.float64)
        return np.where(options > 0, 1.0 / np.maximum(options, 1.0), np.nan)

    def meta(self, key: str) -> Texts:
        """Return the value of `key` in each row's meta; an empty text where it is missing."""
        column: Any = self.table["meta"]
        if column.null_count == len(column):
            return np.full(len(self), "", dtype=object)
        return np.asarray(pc.fill_null(pc.map_lookup(column, key, "first"), ""), dtype=object)

    def mean(self, rows: Bools | None = None) -> Metric:
        """Return the mean score, of all scored rows or of those among `rows`."""
        return mean_over(self.scores, self.scored if rows is None else self.scored & rows)

    def means_by(self, name: str, keys: Texts) -> dict[str, Metric]:
        """Return the mean score of each key as `name/key`. Rows with an empty key are in none."""
        values = sorted(set(keys[self.scored]) - {""})
        return {f"{name}/{key}": self.mean(keys == key) for key in values}

    def _texts(self, name: str) -> Texts:
        return np.asarray(pc.fill_null(self.table[name], ""), dtype=object)


def correct_groups(answers: AnswerArrays, group: NDArray[np.int64]) -> tuple[Bools, Bools]:
    """Return, for rows that count together, the row that stands for each group, and all-correct.

    Both are over rows: is this the first row of a group whose rows are all scored, and are all
    rows of its group correct. A group with an unscored row is represented by no row.
    """
    groups = int(group.max()) + 1 if len(group) else 0
    wrong = np.bincount(group, weights=~answers.correct, minlength=groups)
    unscored = np.bincount(group, weights=~answers.scored, minlength=groups)
    first = np.zeros(len(group), dtype=bool)
    first[np.unique(group, return_index=True)[1]] = True
    return first & (unscored == 0)[group], (wrong == 0)[group]


class Scorer(Protocol):
    """The part of a benchmark that summarises its answers."""

    @property
    def name(self) -> str: ...

    @property
    def headline(self) -> str: ...

    @property
    def headline_max(self) -> float: ...

    def metrics(self, answers: AnswerArrays) -> dict[str, Metric]: ...

    def chance(self, type: str) -> float | None: ...
