"""Tests of whether two runs differ on the same rows, and the number of rows that a test needs.

Chance acts on media: if two runs were the same, their answers to a medium could be swapped. Where
each medium is one right-or-wrong question, counting the swaps is McNemar's exact test; otherwise
swaps are drawn at random.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from pipelines.metrics.intervals import LEVEL, MAX_CELLS, Floats, Ints, RatioSum

DRAWS = 9999  # of swaps: the smallest p-value is 0.0001
POWER = 0.8
POINT = 0.01  # of accuracy


def mcnemar(lost: int, gained: int) -> float:
    """Return the p-value of McNemar's exact test, two-sided.

    lost: rows that only the other run has right; gained: rows that only this run has right.
    """
    rows, fewer = lost + gained, min(lost, gained)
    if rows == 0:
        return 1.0
    k = np.arange(1, fewer + 1, dtype=np.float64)
    log_binomials = np.concatenate([[0.0], np.cumsum(np.log((rows - k + 1) / k))])
    return float(min(1.0, 2 * np.exp(log_binomials - rows * math.log(2)).sum()))


def paired_p_value(ours: RatioSum, theirs: RatioSum, cluster: Ints, seed: int = 0) -> float:
    """Return the two-sided p-value of the difference of two numbers on the same rows."""
    single_rows = len(np.unique(cluster)) == len(cluster)
    if single_rows and _is_share(ours) and _is_share(theirs):
        change = ours.numerators[0] - theirs.numerators[0]
        return mcnemar(int((change < 0).sum()), int((change > 0).sum()))
    return _permutation(ours, theirs, cluster, seed)


def _is_share(ratios: RatioSum) -> bool:
    """Is the number a share of right answers among all rows?"""
    is_mean = len(ratios.weights) == 1 and (ratios.denominators[0] == 1).all()
    return bool(is_mean and np.isin(ratios.numerators[0], (0.0, 1.0)).all())


def _permutation(ours: RatioSum, theirs: RatioSum, cluster: Ints, seed: int) -> float:
    """Return the share of random swaps of clusters whose difference is at least as large.

    Clusters with equal sums are one kind: the number of swapped clusters of a kind is binomial.
    """
    our_sums, their_sums = ours.sums(cluster), theirs.sums(cluster)
    kinds, counts = np.unique(their_sums - our_sums, axis=1, return_counts=True)
    moved = kinds.any(axis=0)
    kinds, counts = kinds[:, moved], counts[moved]
    if not counts.size:
        return 1.0
    totals = [sums.sum(axis=1, keepdims=True) for sums in (our_sums, their_sums)]
    observed = abs(float((ours.values(totals[0]) - theirs.values(totals[1]))[0]))
    generator = np.random.default_rng(seed)
    step = max(1, MAX_CELLS // len(counts))
    extreme = 0
    for start in range(0, DRAWS, step):
        swaps = generator.binomial(counts, 0.5, size=(min(step, DRAWS - start), len(counts)))
        shift = kinds @ swaps.T.astype(np.float64)
        drawn = np.abs(ours.values(totals[0] + shift) - theirs.values(totals[1] - shift))
        extreme += int((drawn >= observed - 1e-9).sum())
    return (1 + extreme) / (1 + DRAWS)


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for multiple comparisons (Holm).

    If no run differs, some corrected value is below 0.05 in at most 5 % of cases.
    """
    adjusted = [1.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def difference_variance(ours: RatioSum, theirs: RatioSum, cluster: Ints) -> float:
    """Return N times the variance of the difference of two numbers on the same N rows.

    It is estimated from the influence of each cluster on the difference.
    """
    influence = _influence(ours, cluster) - _influence(theirs, cluster)
    return float(len(cluster) * (influence**2).sum())


def _influence(ratios: RatioSum, cluster: Ints) -> Floats:
    """Return the change of the number with each cluster's weight, (C,)."""
    above, below = np.split(ratios.sums(cluster), 2)
    sums = below.sum(axis=1, keepdims=True)
    safe = np.where(sums > 0, sums, 1.0)
    value = above.sum(axis=1, keepdims=True) / safe
    weights = np.asarray(ratios.weights, dtype=np.float64)
    return np.asarray(weights @ ((above - value * below) / safe))


def rows_needed(variance: float, difference: float = POINT) -> int | None:
    """Return the number of rows that detect a true difference with POWER, two-sided.

    variance: `difference_variance` of similar rows, with as many questions a medium. None if it is
    zero: two runs without a difference tell nothing about the spread.
    """
    normal = NormalDist()
    z = normal.inv_cdf((1 + LEVEL) / 2) + normal.inv_cdf(POWER)
    return math.ceil(z * z * variance / (difference * difference)) if variance > 0 else None
