import json

import numpy as np
import pytest
import timm

from eagleeye_hf import Budget, EagleEyeError, count_cost, sample_strategies, trace_model, widths_from_ratios
from eagleeye_hf.strategies.files import read_strategy, strategy_to_dict
from tests.helpers import SHARED, needs_shared


@pytest.fixture(scope="module")
def graph():
    return trace_model(timm.create_model("mobilenetv1_100"), (3, 64, 64))


def test_ratios_become_the_papers_widths(graph):
    ratios = [0.0, 0.5, 0.29, 0.999] + [0.1] * 10
    widths = widths_from_ratios(graph, ratios)
    for width, ratio, group in zip(widths[graph_prunable(graph)], ratios, graph.prunable, strict=True):
        assert width == max(1, group.channels - int(np.floor(group.channels * ratio)))


def graph_prunable(graph):
    return [i for i, group in enumerate(graph.groups) if group.prunable]


def test_widths_are_multiples_of_the_divisor(graph):
    widths = widths_from_ratios(graph, np.full((5, 14), 0.37), divisor=8)
    kept = widths[:, graph_prunable(graph)]
    assert (kept % 8 == 0).all()
    assert (kept >= 8).all()


@pytest.mark.parametrize(("macs", "params"), [(0.5, None), (0.25, None), (None, 0.5), (0.6, 0.5), (15_000_000, None)])
def test_every_strategy_meets_the_budget(graph, macs, params):
    budget = Budget(macs=macs, params=params, tolerance=0.005)
    full = count_cost(graph, graph.widths)
    strategies = sample_strategies(graph, budget, 30, seed=1)
    assert len(strategies) == 30
    assert strategies[0].origin == "uniform"
    assert np.ptp(strategies[0].ratios) < 0.05
    for strategy in strategies:
        assert tuple(count_cost(graph, strategy.widths)) == (strategy.macs, strategy.params)
        over = []
        if macs is not None:
            over.append(strategy.macs / full.macs - (macs if macs <= 1 else macs / full.macs))
        if params is not None:
            over.append(strategy.params / full.params - params)
        assert max(over) <= 0.005
    assert len({strategy.widths for strategy in strategies}) == 30


def test_strategy_i_depends_on_seed_and_i_alone(graph):
    budget = Budget(macs=0.5)
    assert sample_strategies(graph, budget, 5, seed=3) == sample_strategies(graph, budget, 9, seed=3)[:5]
    assert sample_strategies(graph, budget, 5, seed=3)[1:] != sample_strategies(graph, budget, 5, seed=4)[1:]


def test_the_papers_sampler_meets_the_budget_too(graph):
    full = count_cost(graph, graph.widths)
    for strategy in sample_strategies(graph, Budget(macs=0.5), 4, sampler="paper")[1:]:
        assert abs(strategy.macs / full.macs - 0.5) <= 0.005


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda g: Budget(macs=0), r"`macs` is a fraction .* got 0"),
        (lambda g: Budget(macs=1.5), r"`macs` is a fraction .* got 1.5"),
        (lambda g: Budget(), "a budget needs `macs` or `params`"),
        (lambda g: sample_strategies(g, Budget(macs=0.01), 3), r"out of reach: .* still has 0\.\d+ of the MACs"),
        (lambda g: sample_strategies(g, Budget(macs=0.5, tolerance=1e-9), 3, divisor=32), "Raise `tolerance`"),
        (lambda g: sample_strategies(g, Budget(macs=0.5), 0), "`num` is the number of strategies"),
        (lambda g: widths_from_ratios(g, [0.5]), "one number per prunable group"),
        (lambda g: widths_from_ratios(g, [1.0] * 14), r"in \[0, 1\)"),
    ],
)
def test_errors_say_what_to_do(graph, call, message):
    with pytest.raises(EagleEyeError, match=message):
        call(graph)


@needs_shared
def test_the_authors_mobilenet_costs_what_they_recorded():
    graph = trace_model(timm.create_model("mobilenetv1_100"))
    strategy = read_strategy(graph, f"{SHARED / 'data' / 'paper_strategies.json'}#mobilenetv1_50")
    assert round(strategy.macs / count_cost(graph, graph.widths).macs, 5) == 0.50805


@needs_shared
@pytest.mark.parametrize(("name", "share"), [("resnet50_25", 0.25), ("resnet50_50", 0.5), ("resnet50_75", 0.75)])
def test_the_authors_resnets_are_matched_by_layer(name, share):
    graph = trace_model(timm.create_model("resnet50"))
    strategy = read_strategy(graph, f"{SHARED / 'data' / 'paper_strategies.json'}#{name}")
    assert strategy.macs / count_cost(graph, graph.widths).macs == pytest.approx(share, abs=0.02)


def test_a_strategy_file_round_trips(graph, tmp_path):
    strategy = sample_strategies(graph, Budget(macs=0.5), 2)[1]
    file = tmp_path / "strategy.json"
    file.write_text(json.dumps(strategy_to_dict(graph, strategy)))
    assert read_strategy(graph, str(file)).widths == strategy.widths
    file.write_text('{"widths": {"nothing": 3}}')
    with pytest.raises(EagleEyeError, match="no channel group"):
        read_strategy(graph, str(file))
    with pytest.raises(EagleEyeError, match="can't be read"):
        read_strategy(graph, str(tmp_path / "missing.json"))
