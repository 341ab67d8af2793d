import json

import numpy as np
import pytest
import timm

from eagleeye_hf import Budget, EagleEyeError, Strategy, count_cost, sample_strategies, trace_model
from eagleeye_hf.strategies.files import describe_strategy, read_strategy
from eagleeye_hf.strategies.strategy import check_strategy, ratios_of, widths_from_ratios
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
    assert np.ptp(ratios_of(graph, strategies[0])) < 0.05  # the uniform one
    for strategy in strategies:
        cost = count_cost(graph, strategy)
        assert cost == count_cost(graph, strategy.widths)
        over = []
        if macs is not None:
            over.append(cost.macs / full.macs - (macs if macs <= 1 else macs / full.macs))
        if params is not None:
            over.append(cost.params / full.params - params)
        assert max(over) <= 0.005
    assert len(set(strategies)) == 30


def test_strategy_i_depends_on_seed_and_i_alone(graph):
    budget = Budget(macs=0.5)
    assert sample_strategies(graph, budget, 5, seed=3) == sample_strategies(graph, budget, 9, seed=3)[:5]
    assert sample_strategies(graph, budget, 5, seed=3)[1:] != sample_strategies(graph, budget, 5, seed=4)[1:]


def test_the_papers_sampler_meets_the_budget_too(graph):
    full = count_cost(graph, graph.widths)
    for strategy in sample_strategies(graph, Budget(macs=0.5), 4, sampler="paper")[1:]:
        assert abs(count_cost(graph, strategy).macs / full.macs - 0.5) <= 0.005


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda g: Budget(macs=0), r"`macs` is a fraction .* got 0"),
        (lambda g: Budget(macs=1.5), r"`macs` is a fraction .* got 1.5"),
        (lambda g: Budget(), "a budget needs `latency`, `macs` or `params`"),
        (lambda g: Budget(macs="half"), r"`macs` is a fraction .* as 300M; got half"),
        (lambda g: Budget(macs="300ms"), r"`macs` is a fraction .* got 300ms"),
        (lambda g: Budget(params="1.5"), r"`params` is a fraction .* got 1.5"),
        (lambda g: Budget(latency="4.2M"), r"`latency` is a fraction .* as 4.2ms; got 4.2M"),
        (lambda g: Budget(latency="-1ms"), r"`latency` is a fraction .* got -1ms"),
        (lambda g: Budget(macs=True), r"`macs` is .*; got True"),
        (lambda g: Budget(macs=float("nan")), r"`macs` is .*; got nan"),
        (lambda g: Budget(macs=0.5, tolerance=0), r"`tolerance` is a number, in \(0, 1\); got 0"),
        (lambda g: check_strategy(g, Strategy(g.widths, ("blocks.0",))), "`removed_blocks`: 'blocks.0' is no block"),
        (lambda g: check_strategy(g, Strategy(g.widths, (), 96)), "`image_size=96`: the network was traced for 64"),
        (lambda g: check_strategy(g, Strategy((3,))), "one integer per group"),
        (lambda g: Strategy.from_dict({"widths": [0]}), "positive integers"),
        (lambda g: Strategy.from_dict({"widths": [4], "removed_blocks": "a"}), "names of modules"),
        (lambda g: Strategy.from_dict({"widths": [4], "image_size": 0}), "number of pixels"),
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
    assert round(count_cost(graph, strategy).macs / count_cost(graph, graph.widths).macs, 5) == 0.50805


@needs_shared
@pytest.mark.parametrize(("name", "fraction"), [("resnet50_25", 0.25), ("resnet50_50", 0.5), ("resnet50_75", 0.75)])
def test_the_authors_resnets_are_matched_by_layer(name, fraction):
    graph = trace_model(timm.create_model("resnet50"))
    strategy = read_strategy(graph, f"{SHARED / 'data' / 'paper_strategies.json'}#{name}")
    assert count_cost(graph, strategy).macs / count_cost(graph, graph.widths).macs == pytest.approx(fraction, abs=0.02)


def test_a_file_of_another_networks_layers_is_refused(graph, tmp_path):
    names = [group.name + ".weight" for group in graph.prunable]
    file = tmp_path / "strategy.json"
    for layers, ratios, message in (
        ([*names, "layer1.0.conv3.weight"], [0.5] * (len(names) + 1), "of another network: layer1.0.conv3.weight"),
        (names, [0.5] * (len(names) + 1), rf"{len(names) + 1} `ratios` for {len(names)} `layers`"),
    ):
        file.write_text(json.dumps({"layers": layers, "ratios": ratios}))
        with pytest.raises(EagleEyeError, match=message):
            read_strategy(graph, str(file))
    file.write_text(json.dumps({"layers": names, "ratios": [0.5] * len(names)}))
    assert read_strategy(graph, str(file)) == Strategy(tuple(widths_from_ratios(graph, [0.5] * len(names))))


def test_a_strategy_file_round_trips(graph, tmp_path):
    strategy = sample_strategies(graph, Budget(macs=0.5), 2)[1]
    file = tmp_path / "strategy.json"
    file.write_text(json.dumps(describe_strategy(graph, strategy, "random", "l1")))
    assert read_strategy(graph, str(file)) == strategy
    file.write_text('{"widths": {"nothing": 3}}')
    with pytest.raises(EagleEyeError, match="no channel group"):
        read_strategy(graph, str(file))
    with pytest.raises(EagleEyeError, match="can't be read"):
        read_strategy(graph, str(tmp_path / "missing.json"))


def test_a_strategy_is_one_value_from_proposal_to_file():
    strategy = Strategy([8, 16], ["layer1.1"], 160)  # lists become tuples
    assert strategy == Strategy((8, 16), ("layer1.1",), 160)
    assert Strategy.from_dict(json.loads(json.dumps(strategy.to_dict()))) == strategy
    assert len({strategy, Strategy((8, 16)), Strategy((8, 16), (), 160)}) == 3
    with pytest.raises(AttributeError):
        strategy.widths = (4, 4)


@pytest.mark.parametrize(
    ("bound", "same"),
    [("300M", 300e6), ("4.1G", 4.1e9), ("12K", 12_000), ("25000000", 25e6), ("0.5", 0.5), (1, 1.0), (2, 2.0)],
)
def test_bounds_may_carry_a_unit(bound, same):
    limit = Budget(macs=bound).limits["macs"]
    assert limit.value == same
    assert limit.is_fraction == (same <= 1)


def test_units_make_milliseconds_below_one_possible():
    assert Budget(latency=0.8).limits["latency"] == (0.8, True)
    assert Budget(latency="0.8ms").limits["latency"] == (0.8, False)
    assert Budget(latency="800us").limits["latency"].value == pytest.approx(0.8)
    assert Budget(latency=4.2).limits["latency"] == (4.2, False)


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        (
            '{"strategies": {"a": {"ratios": []}, "b": {}}}',
            "c",
            r"holds several; choose one, for instance .*#a \(it has a, b",
        ),
        ('{"ratios": [0.1]}', "half", "holds one strategy, and none of the name half; leave #half out"),
        ('{"ratios": ["a"]}', "", "`ratios` are numbers"),
        ("[1, 2]", "", "has neither `widths` nor `ratios`"),
        ('{"widths": {"conv_stem": 1.5}}', "", "positive integers"),
        ('{"widths": {"conv_stem": null}}', "", "positive integers"),
        ("[" * 100_000, "", "can't be read"),
    ],
)
def test_files_of_strangers_are_one_clear_error(graph, tmp_path, text, name, message):
    file = tmp_path / "strategy.json"
    file.write_text(text)
    with pytest.raises(EagleEyeError, match=message):
        read_strategy(graph, f"{file}#{name}" if name else str(file))
