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
        ({"macs": None}, "a budget needs"),
        ({"macs": [0.5, 1.5]}, r"`macs` is a fraction .* got 1.5"),
        ({"latency_ms": -1}, "`latency_ms` is a fraction"),
        ({"candidates": None}, "give `candidates` or `minutes`"),
        ({"candidates": 0}, "`candidates` is at least 1; got 0"),
        ({"minutes": 0}, "`minutes` is above 0"),
        ({"stages": (0.5, 0.2, 1.0)}, "`stages` is rising shares"),
        ({"stages": (0.5,)}, "`stages` is rising shares"),
        ({"promote": 0}, "`promote` is in"),
        ({"generation": 0}, "`generation` is at least 1"),
        ({"method": "annealing"}, "`method` is one of random, evolution, uniform, global; got annealing"),
        ({"sampler": "sobol"}, "`sampler` is one of projected, paper"),
    ],
)
def test_bad_settings_say_what_is_wrong(settings, message):
    with pytest.raises(EagleEyeError, match=message):
        SearchConfig(**settings)
