"""Intervals for the share of right answers, of one run or relative to another run on the same rows.

(`pipelines.metrics.significance` has the tests, `pipelines.metrics.comparison` applies both to the
answers of a benchmark.)

Questions about the same image or video are dependent, so the bootstrap draws *media*: rows belong
to one cluster if any medium links them. Where each cluster is one right-or-wrong question, Wilson's
interval is accurate enough and is used instead.

The bootstrap is exact, and cheap however many rows there are: clusters with equal sums are one
kind, and how often each kind is drawn in a resample of C clusters is one multinomial draw. A
million questions have a few dozen kinds.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

LEVEL = 0.95
RESAMPLES = 2000
MAX_CELLS = 4_000_000  # resamples x kinds in memory at once: 32 MB

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Interval(NamedTuple):
    """A value and the bounds of its interval of confidence LEVEL."""

    value: float
    low: float
    high: float


def as_metrics(name: str, interval: Interval) -> dict[str, float]:
    """Return the interval as three metrics: `name`, `name_ci_low` and `name_ci_high`."""
    return {name: interval.value, f"{name}_ci_low": interval.low, f"{name}_ci_high": interval.high}


def clusters(media: pa.Array | pa.ChunkedArray) -> Ints:
    """Return the cluster of each row, (N,) of 0..C-1, from each row's list of media.

    Rows that share a medium are one cluster, also through a third row. A row without media is a
    cluster of its own.
    """
    array = media.combine_chunks() if isinstance(media, pa.ChunkedArray) else media
    rows = len(array)
    label: Ints = np.arange(rows, dtype=np.int64)
    row = np.asarray(pc.list_parent_indices(array), dtype=np.int64)
    flat = pc.list_flatten(array)
    if len(flat) == 0:
        return label
    medium = np.asarray(flat.dictionary_encode(null_encoding="encode").indices, dtype=np.int64)
    # The lowest label spreads from rows to their media and back. Where each row has one medium,
    # a single turn is enough.
    while True:
        lowest = np.full(int(medium.max()) + 1, rows, dtype=np.int64)
        np.minimum.at(lowest, medium, label[row])
        spread = label.copy()
        np.minimum.at(spread, row, lowest[medium])
        if np.array_equal(spread, label):
            return _renumber(label)
        label = spread


def wilson(right: float, rows: int) -> Interval:
    """Return Wilson's score interval, without continuity correction, for independent rows."""
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    share, shrink = right / rows, 1 + z * z / rows
    middle = (share + z * z / (2 * rows)) / shrink
    half = z / shrink * (share * (1 - share) / rows + z * z / (4 * rows * rows)) ** 0.5
    low = 0.0 if right <= 0 else max(0.0, middle - half)
    return Interval(share, low, 1.0 if right >= rows else min(1.0, middle + half))


def mean(values: Floats, cluster: Ints, seed: int = 0) -> Interval:
    """Return the mean of per-row scores in 0..1 with its interval.

    Wilson's interval where each cluster is one row that is right or wrong, else a bootstrap over
    clusters. Where all clusters have the same mean, a bootstrap sees no spread and would claim
    certainty: then Wilson's interval is used, with clusters in place of rows.
    """
    scores, cluster = np.asarray(values, dtype=np.float64), _renumber(cluster)
    sums, sizes = _cluster_sums(scores, cluster), _cluster_sums(np.ones_like(scores), cluster)
    value = float(scores.mean())
    if len(sums) == len(scores) and np.isin(scores, (0.0, 1.0)).all():
        return wilson(float(scores.sum()), len(scores))
    if np.ptp(sums / sizes) == 0:
        return wilson(value * len(sums), len(sums))._replace(value=value)
    drawn = _resample(np.stack([sums, sizes]), seed)
    return _percentiles(value, drawn[0] / drawn[1])


def retention(values: Floats, reference: Floats, cluster: Ints, seed: int = 0) -> Interval | None:
    """Return sum(values) / sum(reference) on the same rows, with a paired interval.

    None if the reference scores nothing. Where no cluster differs, a bootstrap would claim
    certainty: the interval is then as wide as the share of differing clusters that Wilson's bound
    allows.
    """
    ours, theirs = np.asarray(values, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    if theirs.sum() <= 0:
        return None
    value, cluster = float(ours.sum() / theirs.sum()), _renumber(cluster)
    pair = np.stack([_cluster_sums(ours, cluster), _cluster_sums(theirs, cluster)])
    if np.array_equal(pair[0], pair[1]):
        unseen = wilson(0, pair.shape[1]).high / float(theirs.mean())
        return Interval(value, max(0.0, 1 - unseen), min(1 + unseen, 1 / float(theirs.mean())))
    drawn = _resample(pair, seed)
    possible = drawn[1] > 0
    return _percentiles(value, drawn[0][possible] / drawn[1][possible])


class RatioSum(NamedTuple):
    """The number sum(weight * sum(numerator) / sum(denominator)) of per-row columns."""

    weights: Sequence[float]
    numerators: Sequence[Floats]
    denominators: Sequence[Floats]

    def select(self, rows: NDArray[np.bool_]) -> RatioSum:
        """Return the number of these rows alone."""
        numerators = [column[rows] for column in self.numerators]
        return RatioSum(self.weights, numerators, [column[rows] for column in self.denominators])

    def sums(self, cluster: Ints) -> Floats:
        """Return each column's sum over each cluster, (2 x ratios, C)."""
        columns, cluster = (*self.numerators, *self.denominators), _renumber(cluster)
        return np.stack([_cluster_sums(column, cluster) for column in columns])

    def values(self, sums: Floats) -> Floats:
        """Return the number for each column of (2 x ratios, S). A ratio by zero counts as 0."""
        above, below = np.split(sums, 2)
        ratios = np.divide(above, below, out=np.zeros_like(above), where=below > 0)
        return np.asarray(np.asarray(self.weights, dtype=np.float64) @ ratios)

    def total(self, sums: Floats) -> float:
        """Return the number over all clusters."""
        return float(self.values(sums.sum(axis=1, keepdims=True))[0])


def ratio_sum(ratios: RatioSum, cluster: Ints, seed: int = 0) -> Interval:
    """Return the number with its interval. For a single mean, `mean` is more accurate."""
    sums = ratios.sums(cluster)
    return _percentiles(ratios.total(sums), ratios.values(_resample(sums, seed)))


def ratio_sum_retention(
    ratios: RatioSum, reference: RatioSum, cluster: Ints, seed: int = 0
) -> Interval | None:
    """Return the number relative to the reference's, paired. None if the reference's is zero."""
    ours, theirs = ratios.sums(cluster), reference.sums(cluster)
    base = reference.total(theirs)
    if base <= 0:
        return None
    drawn = _resample(np.concatenate([ours, theirs]), seed)
    above, below = ratios.values(drawn[: len(ours)]), reference.values(drawn[len(ours) :])
    return _percentiles(ratios.total(ours) / base, above[below > 0] / below[below > 0])


def average(numbers: Sequence[Interval]) -> Interval:
    """Return the mean of independent numbers, e.g. of several benchmarks. Squared arms add up."""
    value = sum(number.value for number in numbers) / len(numbers)
    below = sum((number.value - number.low) ** 2 for number in numbers) ** 0.5 / len(numbers)
    above = sum((number.high - number.value) ** 2 for number in numbers) ** 0.5 / len(numbers)
    return Interval(value, value - below, value + above)


def _renumber(cluster: Ints) -> Ints:
    """Number clusters without gaps, which a selection of rows may have."""
    return np.unique(cluster, return_inverse=True)[1].astype(np.int64)


def _cluster_sums(values: Floats, cluster: Ints) -> Floats:
    return np.bincount(cluster, weights=values).astype(np.float64)


def _resample(totals: Floats, seed: int) -> Floats:
    """Sum over RESAMPLES draws of C clusters with replacement: (S, C) -> (S, RESAMPLES)."""
    kinds, counts = np.unique(totals, axis=1, return_counts=True)
    chances = counts / counts.sum()
    generator = np.random.default_rng(seed)
    step = max(1, MAX_CELLS // len(counts))
    blocks = [
        generator.multinomial(int(counts.sum()), chances, size=min(step, RESAMPLES - start))
        @ kinds.T
        for start in range(0, RESAMPLES, step)
    ]
    return np.concatenate(blocks).T


def _percentiles(value: float, drawn: Floats) -> Interval:
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value, float(low), float(high))
