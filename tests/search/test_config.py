import pytest

from eagleeye_hf import EagleEyeError, SearchConfig


def test_budgets_pair_lists_and_repeat_single_numbers():
    budgets = SearchConfig(macs=[0.75, 0.5], params=0.6, tolerance=0.01).budgets
    assert [(b.macs, b.params, b.tolerance) for b in budgets] == [(0.75, 0.6, 0.01), (0.5, 0.6, 0.01)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"macs": [0.5, 0.25], "params": [0.5]}, "equally many numbers"),
        ({"macs": []}, "equally many numbers"),
        ({"macs": [0.5, 1.5]}, r"`macs` is a fraction .* got 1.5"),
        ({"latency": -1}, "`latency` is a fraction"),
        ({"macs": "a lot"}, "`macs` is a fraction .* got a lot"),
        ({"macs": True}, "`macs` is .*; got True"),
        ({"candidates": None}, "a search needs an end; give `candidates`, or `minutes`"),
        ({"candidates": 2.5}, "`candidates` is an integer, at least 1 or left out; got 2.5"),
        ({"candidates": 0}, "`candidates` is an integer, at least 1 or left out; got 0"),
        ({"minutes": 0}, "`minutes` is a number, above 0"),
        ({"stages": (0.5, 0.2, 1.0)}, "`stages` are rising fractions"),
        ({"stages": (0.5,)}, "`stages` are rising fractions"),
        ({"promote": 0}, "`promote` is a number, in"),
        ({"generation": 0}, "`generation` is an integer, at least 1"),
        ({"method": "annealing"}, "`method` is one of random, evolution, uniform, global; got 'annealing'"),
        ({"sampler": "sobol"}, "`sampler` is one of projected, paper"),
    ],
)
def test_bad_settings_say_what_is_wrong(settings, message):
    with pytest.raises(EagleEyeError, match=message):
        SearchConfig(**settings)


def test_half_the_macs_where_no_budget_is_given():
    (budget,) = SearchConfig().budgets
    assert (budget.macs, budget.params, budget.latency) == (0.5, None, None)
    (budget,) = SearchConfig(latency="4.2ms").budgets
    assert (budget.macs, budget.latency) == (None, "4.2ms")
