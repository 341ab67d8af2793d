import numpy as np
import pytest
import timm

from eagleeye_hf import Budget, EagleEyeError, count_cost, sample_strategies, trace_model
from eagleeye_hf.runtimes.latency_model import LatencyModel
from eagleeye_hf.strategies.budget import Bounds
from eagleeye_hf.strategies.space import Space
from eagleeye_hf.strategies.strategy import ratios_of, widths_from_ratios


@pytest.fixture(scope="module")
def graph():
    return trace_model(timm.create_model("mobilenetv1_100"), (3, 64, 64))


@pytest.mark.parametrize("macs", [0.5, 0.35])
def test_projected_draws_are_spread_like_uniform_draws_that_happen_to_fit(graph, macs):
    """The oracle is rejection: 60,000 uniform draws, of which those within the tolerance are kept."""
    random = np.random.default_rng(7)
    ratios = random.random((60_000, len(graph.prunable))) * 0.7
    full = count_cost(graph, graph.widths).macs
    kept = count_cost(graph, widths_from_ratios(graph, ratios)).macs / full
    accepted = ratios[np.abs(kept - macs) <= 0.005]
    drawn = np.array([ratios_of(graph, s) for s in sample_strategies(graph, Budget(macs=macs), 500, seed=3)[1:]])
    assert len(accepted) > 300
    assert np.abs(drawn.mean(0) - accepted.mean(0)).max() < 0.05
    spread = drawn.std(0) / accepted.std(0)
    assert 0.8 < spread.min() < spread.max() < 1.2
    for probability in (0.1, 0.5, 0.9):  # no pile-up at either end
        gaps = np.quantile(drawn, probability, axis=0) - np.quantile(accepted, probability, axis=0)
        assert np.abs(gaps).max() < 0.1


def test_a_harsh_budget_still_leaves_groups_free(graph):
    drawn = np.array([ratios_of(graph, s) for s in sample_strategies(graph, Budget(macs=0.15), 200)[1:]])
    assert drawn.std(0).max() > 0.1
    assert len(np.unique(drawn.round(3), axis=0)) == 199


@pytest.mark.parametrize("divisor", [4, 8])
def test_coarse_widths_meet_the_budget_by_single_steps(divisor):
    graph = trace_model(timm.create_model("resnet20_cifar"))
    full = count_cost(graph, graph.widths).macs
    for strategy in sample_strategies(graph, Budget(macs=0.5, tolerance=0.02), 20, divisor=divisor)[1:]:
        assert abs(count_cost(graph, strategy).macs / full - 0.5) <= 0.02
        for width, group in zip(strategy.widths, graph.groups, strict=True):
            assert width % divisor == 0 or width == group.channels


def test_latency_is_a_bound_like_the_others(graph):
    rows = 3 + len(graph.prunable)
    latency = LatencyModel(coefficients=(2.0, 6.0, 0.0, *[0.0] * (rows - 3)), full_ms=8.0, error=0.0)
    full = count_cost(graph, graph.widths).macs
    for strategy in sample_strategies(graph, Budget(latency=5.0), 20, latency=latency)[1:]:
        milliseconds = 2 + 6 * count_cost(graph, strategy).macs / full
        assert abs(milliseconds / 8 - 5 / 8) <= 0.005
    with pytest.raises(EagleEyeError, match=r"`latency=5.0` needs measurements"):
        sample_strategies(graph, Budget(latency=5.0), 2)
    with pytest.raises(EagleEyeError, match=r"still has 0\.\d+ of the latency"):
        sample_strategies(graph, Budget(latency=0.2), 2, latency=latency)


def test_three_bounds_at_once(graph):
    latency = LatencyModel(coefficients=(0.0, 0.0, 10.0, *[0.0] * len(graph.prunable)), full_ms=10.0, error=0.0)
    budget = Budget(macs=0.6, params=0.5, latency=0.7)
    full = count_cost(graph, graph.widths)
    for strategy in sample_strategies(graph, budget, 20, latency=latency):
        cost = count_cost(graph, strategy)
        assert cost.macs <= 0.605 * full.macs
        assert cost.params <= 0.505 * full.params


def test_what_is_shifted_keeps_its_order(graph):
    """Of groups that cost alike, the one that was to lose more still loses more."""
    space = Space(Bounds(graph, Budget(macs=0.5)))
    space._tilt[:] = 1.0
    ratios = np.random.default_rng(0).random((5, space.num_groups)) * 0.7
    assert np.array_equal(np.argsort(space.shift(ratios)), np.argsort(ratios))


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (Budget(macs=1e12), r"the budget \(macs=1000000000000.0\) allows more than the full network costs \(macs"),
        (Budget(macs=2), r"\(`macs` above 1 is an absolute number; fractions are at most 1\) is out of reach"),
    ],
)
def test_budgets_of_another_network_say_so(graph, budget, message):
    with pytest.raises(EagleEyeError, match=message):
        Space(Bounds(graph, budget))
