"""Intervals for the share of right answers, alone and against another run on the same rows.

(`pipelines.metrics.significance` has the tests, `pipelines.metrics.comparison` brings both to a benchmark's answers.)

Questions that share an image or a video fall together, so the unit that is drawn again is the *medium*: rows belong to
one cluster if any medium links them. Where each cluster is one right-or-wrong question, Wilson's interval is exact
enough and is used instead.

The bootstrap is exact, not approximate, and cheap however many rows there are: clusters with equal sums are one kind,
and how often each kind is drawn in a resample of C clusters is one multinomial draw. A million questions have a few
dozen kinds.
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
CELLS = 4_000_000  # of resamples x kinds held at once: 32 MB

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Interval(NamedTuple):
    """A number and where it lies with a probability of LEVEL."""

    value: float
    low: float
    high: float


def as_metrics(name: str, interval: Interval) -> dict[str, float]:
    """As metrics have it."""
    return {name: interval.value, f"{name}_ci_low": interval.low, f"{name}_ci_high": interval.high}


def clusters(media: pa.Array | pa.ChunkedArray) -> Ints:
    """Which rows depend on each other: (N,) of 0..C-1, from each row's list of media.

    Rows that share a medium are one cluster, also through a third row. A row without media is its own.
    """
    array = media.combine_chunks() if isinstance(media, pa.ChunkedArray) else media
    rows = len(array)
    label: Ints = np.arange(rows, dtype=np.int64)
    row = np.asarray(pc.list_parent_indices(array), dtype=np.int64)
    flat = pc.list_flatten(array)
    if len(flat) == 0:
        return label
    medium = np.asarray(flat.dictionary_encode(null_encoding="encode").indices, dtype=np.int64)
    while (
        True
    ):  # the lowest label spreads to a medium's rows and on; one turn where each row has one medium
        lowest = np.full(int(medium.max()) + 1, rows, dtype=np.int64)
        np.minimum.at(lowest, medium, label[row])
        spread = label.copy()
        np.minimum.at(spread, row, lowest[medium])
        if np.array_equal(spread, label):
            return renumber(label)
        label = spread


def renumber(cluster: Ints) -> Ints:
    """The numbers of some rows' clusters, without gaps."""
    return np.unique(cluster, return_inverse=True)[1].astype(np.int64)


def wilson(right: float, rows: int, level: float = LEVEL) -> Interval:
    """Wilson's score interval, without continuity correction: right answers among independent rows."""
    z = NormalDist().inv_cdf((1 + level) / 2)
    share, shrink = right / rows, 1 + z * z / rows
    middle = (share + z * z / (2 * rows)) / shrink
    half = z / shrink * (share * (1 - share) / rows + z * z / (4 * rows * rows)) ** 0.5
    low, high = middle - half, middle + half
    return Interval(
        share, 0.0 if right <= 0 else max(0.0, low), 1.0 if right >= rows else min(1.0, high)
    )


def mean(
    values: Sequence[float] | Floats, cluster: Ints, seed: int = 0, level: float = LEVEL
) -> Interval:
    """Mean of per-row scores in 0..1 with its interval.

    Wilson's where each cluster is one row that is right or wrong, else a bootstrap over clusters. Where all clusters
    have the same mean a bootstrap sees no spread and would claim certainty: then Wilson's, with clusters for rows.
    """
    scores = np.asarray(values, dtype=np.float64)
    sums, sizes = _totals(scores, cluster), _totals(np.ones_like(scores), cluster)
    value = float(scores.mean())
    if len(sums) == len(scores) and np.isin(scores, (0.0, 1.0)).all():
        return wilson(float(scores.sum()), len(scores), level)
    if np.ptp(sums / sizes) == 0:
        return wilson(value * len(sums), len(sums), level)._replace(value=value)
    drawn = _resample(np.stack([sums, sizes]), seed)
    return _percentiles(value, drawn[0] / drawn[1], level)


def retention(
    values: Sequence[float] | Floats,
    reference: Sequence[float] | Floats,
    cluster: Ints,
    seed: int = 0,
    level: float = LEVEL,
) -> Interval | None:
    """What is left of the reference's score on the same rows: sum(values) / sum(reference), paired.

    None where the reference has no point at all. Where no cluster differs, a bootstrap would claim certainty: the
    interval then says how much could differ by the share of clusters that Wilson's bound allows.
    """
    ours, theirs = np.asarray(values, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    if theirs.sum() <= 0:
        return None
    value = float(ours.sum() / theirs.sum())
    pair = np.stack([_totals(ours, cluster), _totals(theirs, cluster)])
    if np.array_equal(pair[0], pair[1]):
        unseen = wilson(0, pair.shape[1], level).high / float(theirs.mean())
        return Interval(value, max(0.0, 1 - unseen), min(1 + unseen, 1 / float(theirs.mean())))
    drawn = _resample(pair, seed)
    possible = drawn[1] > 0
    return _percentiles(value, drawn[0][possible] / drawn[1][possible], level)


class RatioSum(NamedTuple):
    """A number that is sum(weight * above / below) over parts, each the sums of two per-row columns."""

    weights: Sequence[float]
    above: Sequence[Floats]
    below: Sequence[Floats]

    def among(self, rows: NDArray[np.bool_]) -> RatioSum:
        """The number of some rows alone."""
        return RatioSum(
            self.weights,
            [column[rows] for column in self.above],
            [column[rows] for column in self.below],
        )

    def sums(self, cluster: Ints) -> Floats:
        """(2 parts, C)"""
        return np.stack([_totals(column, cluster) for column in (*self.above, *self.below)])

    def of(self, sums: Floats) -> Floats:
        """The number, for each column of (2 parts, S); a part with nothing below counts as 0."""
        above, below = np.split(sums, 2)
        ratios = np.divide(above, below, out=np.zeros_like(above), where=below > 0)
        found: Floats = np.asarray(self.weights, dtype=np.float64) @ ratios
        return found


def ratio_sum(parts: RatioSum, cluster: Ints, seed: int = 0, level: float = LEVEL) -> Interval:
    """Such a number with its interval; of a single mean, `mean` knows more."""
    sums = parts.sums(cluster)
    value = float(parts.of(sums.sum(axis=1, keepdims=True))[0])
    return _percentiles(value, parts.of(_resample(sums, seed)), level)


def ratio_sum_retention(
    parts: RatioSum, reference: RatioSum, cluster: Ints, seed: int = 0, level: float = LEVEL
) -> Interval | None:
    """What is left of the reference's number on the same rows, paired. None where the reference has no point."""
    ours, theirs = parts.sums(cluster), reference.sums(cluster)
    base = float(reference.of(theirs.sum(axis=1, keepdims=True))[0])
    if base <= 0:
        return None
    drawn = _resample(np.concatenate([ours, theirs]), seed)
    above, below = parts.of(drawn[: len(ours)]), reference.of(drawn[len(ours) :])
    value = float(parts.of(ours.sum(axis=1, keepdims=True))[0]) / base
    return _percentiles(value, above[below > 0] / below[below > 0], level)


def average(found: Sequence[Interval]) -> Interval:
    """The mean of numbers that know nothing of each other, as those of several benchmarks: squared arms add up."""
    value = sum(each.value for each in found) / len(found)
    below = sum((each.value - each.low) ** 2 for each in found) ** 0.5 / len(found)
    above = sum((each.high - each.value) ** 2 for each in found) ** 0.5 / len(found)
    return Interval(value, value - below, value + above)


def _totals(values: Floats, cluster: Ints) -> Floats:
    return np.bincount(cluster, weights=values).astype(np.float64)


def _resample(totals: Floats, seed: int) -> Floats:
    """Sums over RESAMPLES draws of as many clusters as there are, with replacement: (S, C) -> (S, RESAMPLES)."""
    kinds, counts = np.unique(totals, axis=1, return_counts=True)
    chances = counts / counts.sum()
    generator = np.random.default_rng(seed)
    step = max(1, CELLS // len(counts))
    parts = [
        generator.multinomial(int(counts.sum()), chances, size=min(step, RESAMPLES - start))
        @ kinds.T
        for start in range(0, RESAMPLES, step)
    ]
    return np.concatenate(parts).T


def _percentiles(value: float, drawn: Floats, level: float) -> Interval:
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high))
