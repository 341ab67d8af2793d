"""Correlations and their intervals, beside SciPy's."""

import math

import numpy as np
import pytest
import scipy.stats

from eagleeye_hf.study.statistics import RESAMPLES, estimate, kendall, pearson, regret, spearman, top_half


def draws(num: int, seed: int = 0, noise: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    x = random.normal(size=num)
    return x, x + noise * random.normal(size=num)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(pearson, scipy.stats.pearsonr), (spearman, scipy.stats.spearmanr), (kendall, scipy.stats.kendalltau)],
)
def test_correlations_are_scipys_with_ties_too(ours, theirs):
    rows = [draws(17, seed) for seed in range(5)]
    rows += [tuple(np.round(values) for values in draws(17, seed)) for seed in range(5)]
    found = ours(np.array([x for x, _ in rows]), np.array([y for _, y in rows]))
    np.testing.assert_allclose(found, [theirs(x, y)[0] for x, y in rows], atol=1e-12)


@pytest.mark.parametrize("statistic", [pearson, spearman, kendall])
def test_what_does_not_vary_has_no_correlation(statistic):
    _, y = draws(9)
    assert np.isnan(statistic(np.ones((1, 9)), y[None]))[0]
    found = estimate(statistic, np.ones(9), y)
    assert all(map(math.isnan, (found.value, found.low, found.high)))


def test_intervals_are_those_of_scipys_bootstrap():
    x, y = draws(40)
    found = estimate(spearman, x, y)
    expected = scipy.stats.bootstrap(
        (x, y),
        lambda a, b, axis: np.array(scipy.stats.spearmanr(a, b)[0]) if np.ndim(a) == 1 else spearman(a, b),
        paired=True,
        vectorized=True,
        axis=-1,
        method="percentile",
        confidence_level=0.9,
        n_resamples=RESAMPLES,
        rng=1,
    ).confidence_interval
    assert found.low == pytest.approx(expected.low, abs=0.03)
    assert found.high == pytest.approx(expected.high, abs=0.03)
    assert found.low < found.value < found.high
    assert estimate(spearman, x, y) == found


def test_regret_is_what_the_first_choice_misses():
    scores, accuracy = np.array([[1.0, 3.0, 2.0], [1.0, 2.0, 3.0]]), np.array([[90.0, 88.5, 91.0], [80.0, 81.0, 82.0]])
    np.testing.assert_allclose(regret(scores, accuracy), [2.5, 0.0])
    assert sorted(top_half(np.array([3.0, 9.0, 5.0, 1.0, 8.0]))) == [1, 2, 4]
