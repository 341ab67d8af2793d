import numpy as np
import pytest
import timm

from eagleeye_hf import Budget, EagleEyeError, count_cost, sample_strategies, trace_model
from eagleeye_hf.strategies.budget import Bounds
from eagleeye_hf.strategies.space import Space
from eagleeye_hf.strategies.strategy import aligned_divisors, ratios_of, widths_from_ratios
from tests.runtimes.predictors import LinearLaw


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


@pytest.mark.parametrize(
    "budget", [Budget(latency=0.6), Budget(latency=0.6, macs=0.45), Budget(latency=0.6, params=0.4)]
)
def test_draws_inside_a_bound_on_milliseconds_are_spread_like_uniform_ones_that_fit(graph, budget):
    """The oracle is rejection, as for MACs; here also with a second bound."""
    latency = LinearLaw(2.0, 6.0, 2.0)
    bounds = Bounds(graph, budget, latency)
    ratios = np.random.default_rng(7).random((60_000, len(graph.prunable))) * 0.7
    accepted = ratios[bounds.fits(widths_from_ratios(graph, ratios))]
    found = sample_strategies(graph, budget, 400, seed=3, latency=latency)[1:]
    drawn = np.array([ratios_of(graph, strategy) for strategy in found])
    assert len(accepted) > 200
    assert np.abs(drawn.mean(0) - accepted.mean(0)).max() < 0.08
    spread = drawn.std(0) / accepted.std(0)
    assert 0.75 < spread.min() < spread.max() < 1.25
    for strategy in found:
        left = latency.predict(graph, np.array([strategy.widths]))[0] / latency.full_ms
        assert left <= 0.6 + 0.005


def test_latency_is_a_bound_like_the_others(graph):
    latency = LinearLaw(2.0, 6.0)
    full = count_cost(graph, graph.widths).macs
    for strategy in sample_strategies(graph, Budget(latency=5.0), 20, latency=latency)[1:]:
        milliseconds = 2 + 6 * count_cost(graph, strategy).macs / full
        assert abs(milliseconds / 8 - 5 / 8) <= 0.005
    with pytest.raises(EagleEyeError, match=r"`latency=5.0` needs measurements"):
        sample_strategies(graph, Budget(latency=5.0), 2)
    with pytest.raises(EagleEyeError, match=r"still has 0\.\d+ of the latency"):
        sample_strategies(graph, Budget(latency=0.2), 2, latency=latency)


def test_three_bounds_at_once(graph):
    latency = LinearLaw(0.0, 0.0, 10.0)
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


class AlwaysTheSame:
    """A GPU that one image keeps waiting for its kernels."""

    full_ms = 2.0

    def predict(self, graph, widths):
        return np.full(len(widths), 1.98)


def test_milliseconds_that_widths_do_not_change_are_named(graph):
    message = r"hardly depend on widths, as on a GPU .* measure more images at a time with `latency_batch`"
    with pytest.raises(EagleEyeError, match=message):
        Space(Bounds(graph, Budget(latency=0.5), AlwaysTheSame()))
    with pytest.raises(EagleEyeError) as caught:
        Space(Bounds(graph, Budget(macs=0.01)))
    assert "latency_batch" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "fraction", "milliseconds"),
    [
        (0.5, True, None),
        ("0.5", True, None),
        ("4.2ms", False, 4.2),
        ("0.8ms", False, 0.8),
        ("800us", False, 0.8),
        (3, False, 3.0),
    ],
)
def test_a_unit_makes_a_bound_on_milliseconds_absolute(value, fraction, milliseconds):
    limit = Budget(latency=value).limits["latency"]
    assert limit.is_fraction == fraction
    if milliseconds is not None:
        assert limit.value == pytest.approx(milliseconds)


def test_divisors_follow_the_alignment_but_leave_narrow_groups_a_choice():
    graph = trace_model(timm.create_model("resnet20_cifar"))
    divisors = aligned_divisors(graph, 16)
    channels = [group.channels for group in graph.prunable]
    assert dict(zip(channels, divisors, strict=True)) == {16: 8, 32: 16, 64: 16}
    widths = widths_from_ratios(graph, np.random.default_rng(0).random((50, len(channels))) * 0.7, divisors)
    kept = widths[:, [i for i, group in enumerate(graph.groups) if group.prunable]]
    assert np.all((kept % divisors == 0) | (kept == channels))
    assert len(np.unique(kept[:, channels.index(16)])) == 2
    with pytest.raises(EagleEyeError, match=r"`divisor` needs one number per prunable group \(\d+\); got 2"):
        widths_from_ratios(graph, np.zeros(len(channels)), (8, 8))
