"""Is a run different from another on the same rows, or could it be chance? Tests, and how many rows an answer takes.

A medium is what chance acts on: if the two runs were the same, their answers to a medium could as well be swapped.
Where each medium is one right-or-wrong question, counting the swaps is McNemar's exact test; otherwise they are drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from pipelines.metrics.intervals import CELLS, LEVEL, Floats, Ints, RatioSum

DRAWS = 9999  # of swaps: the smallest p-value is 0.0001
POWER = 0.8
POINT = 0.01  # of accuracy


def mcnemar(lost: int, gained: int) -> float:
    """McNemar's exact test, two-sided: rows that only the other run has right, and rows that only this one has."""
    rows, few = lost + gained, min(lost, gained)
    if rows == 0:
        return 1.0
    place = np.arange(1, few + 1, dtype=np.float64)
    ways = np.concatenate(
        [[0.0], np.cumsum(np.log((rows - place + 1) / place))]
    )  # logarithms of binomials
    return float(min(1.0, 2 * np.exp(ways - rows * math.log(2)).sum()))


def paired_p_value(ours: RatioSum, theirs: RatioSum, cluster: Ints, seed: int = 0) -> float:
    """Two-sided p-value of the difference of two numbers on the same rows."""
    if _single(ours, theirs, cluster):
        change = ours.above[0] - theirs.above[0]
        return mcnemar(int((change < 0).sum()), int((change > 0).sum()))
    return _swapped(ours, theirs, cluster, seed)


def _single(ours: RatioSum, theirs: RatioSum, cluster: Ints) -> bool:
    """Are both a share of right answers, among clusters of one row?"""
    if len(ours.weights) != 1 or len(np.unique(cluster)) != len(cluster):
        return False
    return all(
        (parts.below[0] == 1).all() and np.isin(parts.above[0], (0.0, 1.0)).all()
        for parts in (ours, theirs)
    )


def _swapped(ours: RatioSum, theirs: RatioSum, cluster: Ints, seed: int) -> float:
    """The share of random swaps of clusters that differ at least as much.

    Clusters with equal sums are one kind, of which a binomial number is swapped.
    """
    mine, other = ours.sums(cluster), theirs.sums(cluster)
    kinds, counts = np.unique(other - mine, axis=1, return_counts=True)
    moved = kinds.any(axis=0)
    kinds, counts = kinds[:, moved], counts[moved]
    if not counts.size:
        return 1.0
    totals = mine.sum(axis=1, keepdims=True), other.sum(axis=1, keepdims=True)
    seen = abs(float((ours.of(totals[0]) - theirs.of(totals[1]))[0]))
    generator = np.random.default_rng(seed)
    step = max(1, CELLS // len(counts))
    extreme = 0
    for start in range(0, DRAWS, step):
        swaps = generator.binomial(counts, 0.5, size=(min(step, DRAWS - start), len(counts)))
        shift = kinds @ swaps.T.astype(np.float64)
        drawn = np.abs(ours.of(totals[0] + shift) - theirs.of(totals[1] - shift))
        extreme += int((drawn >= seen - 1e-9).sum())
    return (1 + extreme) / (1 + DRAWS)


def holm(found: Sequence[float]) -> list[float]:
    """P-values as they count among each other (Holm): below 0.05, any of them is found wrongly in 5 % of cases."""
    adjusted = [1.0] * len(found)
    highest = 0.0
    for rank, place in enumerate(sorted(range(len(found)), key=found.__getitem__)):
        highest = max(highest, min(1.0, (len(found) - rank) * found[place]))
        adjusted[place] = highest
    return adjusted


def difference_variance(ours: RatioSum, theirs: RatioSum, cluster: Ints) -> float:
    """Of the difference of two numbers on the same N rows, times N; from each cluster's influence on it."""
    influence = _influence(ours, cluster) - _influence(theirs, cluster)
    return float(len(cluster) * (influence**2).sum())


def _influence(parts: RatioSum, cluster: Ints) -> Floats:
    """(C,) how the number changes with each cluster's weight."""
    above, below = np.split(parts.sums(cluster), 2)
    sums = below.sum(axis=1, keepdims=True)
    safe = np.where(sums > 0, sums, 1.0)
    share = above.sum(axis=1, keepdims=True) / safe
    found: Floats = np.asarray(parts.weights, dtype=np.float64) @ ((above - share * below) / safe)
    return found


def rows_needed(
    spread: float, difference: float = POINT, power: float = POWER, level: float = LEVEL
) -> int | None:
    """Rows after which a true difference is found with that power, two-sided.

    spread: `variance` of rows like these, with as many questions a medium. None if nothing differs: nothing is known.
    """
    normal = NormalDist()
    z = normal.inv_cdf((1 + level) / 2) + normal.inv_cdf(power)
    return math.ceil(z * z * spread / (difference * difference)) if spread > 0 else None
