"""Significance tests and the rows they need, against scipy and statsmodels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.metrics import intervals, significance
from pipelines.metrics.intervals import Interval, RatioSum

scipy_stats = pytest.importorskip("scipy.stats")
contingency = pytest.importorskip("statsmodels.stats.contingency_tables")
multitest = pytest.importorskip("statsmodels.stats.multitest")
power = pytest.importorskip("statsmodels.stats.power")
proportion = pytest.importorskip("statsmodels.stats.proportion")


def as_mean(values: np.ndarray) -> RatioSum:
    return RatioSum([1.0], [values.astype(np.float64)], [np.ones(len(values))])


def clustered_runs(
    seed: int, media: int, most: int, gain: float = 0.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the scores of two runs, similar within a medium, and the medium of each row."""
    dice = np.random.default_rng(seed)
    cluster = np.repeat(np.arange(media), dice.integers(1, most + 1, media))
    easy = dice.uniform(0.1, 0.9, media)[cluster]
    theirs = dice.random(len(cluster)) < easy
    redone = dice.random(len(cluster)) < 0.4
    return (
        np.where(redone, dice.random(len(cluster)) < easy + gain, theirs) * 1.0,
        theirs * 1.0,
        cluster,
    )


@given(st.integers(0, 400), st.integers(0, 400))
def test_mcnemar_equals_scipy_and_statsmodels(lost: int, gained: int) -> None:
    result = significance.mcnemar(lost, gained)
    assert result == significance.mcnemar(gained, lost)
    if lost + gained:
        assert result == pytest.approx(scipy_stats.binomtest(lost, lost + gained).pvalue, rel=1e-9)
        assert result == pytest.approx(
            contingency.mcnemar([[9, lost], [gained, 9]], exact=True).pvalue, rel=1e-9
        )
    else:
        assert result == 1


def test_mcnemar_of_many_rows_equals_scipy() -> None:
    assert significance.mcnemar(60_000, 61_000) == pytest.approx(
        scipy_stats.binomtest(60_000, 121_000).pvalue, rel=1e-6
    )


@given(st.integers(1, 10_000), st.data())
def test_wilson_equals_statsmodels(rows: int, data: st.DataObject) -> None:
    right = data.draw(st.integers(0, rows))
    low, high = proportion.proportion_confint(right, rows, method="wilson")
    assert intervals.wilson(right, rows)[1:] == pytest.approx((low, high), abs=1e-12)


@settings(
    max_examples=20
)  # statsmodels collects garbage each time, which takes a while beside torch
@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_holm_equals_statsmodels(result: list[float]) -> None:
    assert significance.holm(result) == pytest.approx(
        multitest.multipletests(result, method="holm")[1], abs=1e-12
    )


def test_p_value_of_one_question_a_medium_equals_statsmodels_mcnemar() -> None:
    ours, theirs, cluster = clustered_runs(0, 300, 1)
    lost, gained = int((ours < theirs).sum()), int((ours > theirs).sum())
    assert lost != gained
    result = significance.paired_p_value(as_mean(ours), as_mean(theirs), cluster)
    assert result == pytest.approx(contingency.mcnemar([[0, lost], [gained, 0]], exact=True).pvalue)


@pytest.mark.parametrize(("seed", "gain"), [(1, 0.0), (2, 0.1), (3, 0.1), (4, 0.2), (5, -0.1)])
def test_p_value_of_clusters_equals_scipys_permutation_test(seed: int, gain: float) -> None:
    ours, theirs, cluster = clustered_runs(seed, 80, 5, gain)
    sums = [np.bincount(cluster, weights=values) for values in (ours, theirs)]
    expected = scipy_stats.permutation_test(
        sums,
        lambda a, b, axis: np.abs((a - b).sum(axis=axis)),
        permutation_type="samples",
        vectorized=True,
        n_resamples=9999,
        alternative="greater",
        rng=np.random.default_rng(seed),
    ).pvalue
    result = significance.paired_p_value(as_mean(ours), as_mean(theirs), cluster)
    assert result == pytest.approx(expected, abs=4 * np.sqrt(max(expected, 0.001) / 9999) + 0.0002)
    assert result == significance.paired_p_value(as_mean(ours), as_mean(theirs), cluster)


def test_permutation_of_single_questions_approximates_mcnemar() -> None:
    """One more row, equal in both runs, makes a medium of two, so that swaps are drawn."""
    ours, theirs, cluster = clustered_runs(6, 200, 1, 0.15)
    exact = significance.paired_p_value(as_mean(ours), as_mean(theirs), cluster)
    more = (as_mean(np.append(values, 1.0)) for values in (ours, theirs))
    assert significance.paired_p_value(*more, np.append(cluster, 0)) == pytest.approx(
        exact, abs=0.02
    )


def test_false_positive_rate_of_clustered_runs_is_5_percent() -> None:
    """About 5 % of 300 equal pairs differ significantly; row by row it would be far more."""
    result, naive = 0, 0
    for seed in range(300):
        dice = np.random.default_rng(seed)
        cluster = np.repeat(np.arange(40), 6)
        theirs, ours = ((dice.random((2, 40)) < 0.5) * 1.0)[:, cluster]
        result += significance.paired_p_value(as_mean(ours), as_mean(theirs), cluster, seed) < 0.05
        naive += significance.mcnemar(int((ours < theirs).sum()), int((ours > theirs).sum())) < 0.05
    assert result / 300 < 0.09
    assert naive / 300 > 0.2


def test_identical_runs_have_p_value_1_and_no_variance() -> None:
    ours, _, cluster = clustered_runs(7, 50, 4)
    assert significance.paired_p_value(as_mean(ours), as_mean(ours), cluster) == 1
    assert significance.difference_variance(as_mean(ours), as_mean(ours), cluster) == 0
    assert significance.rows_needed(0.0) is None


def test_variance_of_single_rows_equals_numpy() -> None:
    ours, theirs, cluster = clustered_runs(8, 500, 1)
    assert significance.difference_variance(
        as_mean(ours), as_mean(theirs), cluster
    ) == pytest.approx(np.var(ours - theirs))


@pytest.mark.parametrize("seed", range(3))
def test_variance_of_a_ratio_sum_equals_a_bootstrap(seed: int) -> None:
    """The number is a weighted sum of two shares, resampled by media."""
    ours, theirs, cluster = clustered_runs(seed, 300, 4, 0.1)
    half = np.random.default_rng(seed).random(len(cluster)) < 0.5

    def parts(values: np.ndarray) -> RatioSum:
        return RatioSum([1.0, 2.0], [values * half, values * ~half], [half * 1.0, ~half * 1.0])

    def number(values: np.ndarray, rows: np.ndarray) -> float:
        return float(values[rows][half[rows]].mean() + 2 * values[rows][~half[rows]].mean())

    members = [np.flatnonzero(cluster == each) for each in range(300)]
    dice = np.random.default_rng(seed)
    drawn = []
    for _ in range(1500):
        rows = np.concatenate([members[each] for each in dice.integers(0, 300, 300)])
        drawn.append(number(ours, rows) - number(theirs, rows))
    result = significance.difference_variance(parts(ours), parts(theirs), cluster)
    assert result == pytest.approx(len(cluster) * np.var(drawn), rel=0.12)


@given(st.floats(0.02, 0.6), st.floats(0.005, 0.1))
def test_rows_needed_equals_statsmodels(spread: float, difference: float) -> None:
    result = significance.rows_needed(spread, difference)
    assert result is not None
    expected = power.TTestPower().solve_power(
        effect_size=difference / spread**0.5, power=0.8, alpha=0.05
    )
    assert result == pytest.approx(expected, abs=4)  # Student's t asks for two more than the normal


def test_rows_needed_give_a_power_of_80_percent() -> None:
    """Four of five samples of that many rows detect a true loss of ten points."""
    dice = np.random.default_rng(0)
    lost, gained = 0.2, 0.1
    rows = significance.rows_needed(lost + gained - (lost - gained) ** 2, lost - gained)
    counts = dice.multinomial(rows, [lost, gained, 1 - lost - gained], size=1000)
    result = np.mean(
        [significance.mcnemar(int(one), int(other)) < 0.05 for one, other, _ in counts]
    )
    assert 0.74 < result < 0.84


def test_average_interval_equals_that_of_independent_draws() -> None:
    dice = np.random.default_rng(0)
    drawn = dice.normal([0.9, 0.8, 1.0], [0.01, 0.02, 0.04], (100_000, 3)).mean(axis=1)
    result = intervals.average(
        [
            Interval(mean, mean - 1.96 * sd, mean + 1.96 * sd)
            for mean, sd in ((0.9, 0.01), (0.8, 0.02), (1.0, 0.04))
        ]
    )
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert result == pytest.approx((0.9, low, high), abs=5e-4)
