"""Blocks and image sizes beside widths: what is drawn, what is bred, and what each dimension takes."""

import numpy as np
import pytest

from eagleeye_hf import Budget, EagleEyeError, Strategy, count_cost, sample_strategies, trace_model
from eagleeye_hf.channels.cost import strategy_rows
from eagleeye_hf.search.config import SearchConfig
from eagleeye_hf.search.methods import Proposer
from eagleeye_hf.strategies.budget import Bounds
from eagleeye_hf.strategies.keeping import spared_blocks
from eagleeye_hf.strategies.space import Space
from eagleeye_hf.strategies.strategy import check_strategy
from tests.helpers import make_model
from tests.runtimes.predictors import per_channel

ALL = ("width", "depth", "size")


@pytest.fixture(scope="module")
def graph():
    return trace_model(make_model("resnet56_cifar"), image_sizes=(16, 20, 24, 28))


def test_the_cost_at_another_size_is_that_of_a_network_traced_there(graph):
    for size in (16, 24):
        there = trace_model(make_model("resnet56_cifar"), (3, size, size))
        for strategy in sample_strategies(there, Budget(macs=0.6), 4):
            at_size = Strategy(strategy.widths, (), size)
            assert count_cost(graph, at_size) == count_cost(there, strategy)


@pytest.mark.parametrize(
    "dimensions", [ALL, ("depth", "size"), ("width", "size"), ("width", "depth"), ("depth",), ("size",)]
)
@pytest.mark.parametrize("part", [0.5, 0.3])
def test_every_strategy_meets_the_budget_and_is_in_its_one_form(graph, dimensions, part):
    strategies = sample_strategies(graph, Budget(macs=part), 40, seed=1, dimensions=dimensions)
    full = count_cost(graph, graph.widths).macs
    for strategy in strategies:
        assert check_strategy(graph, strategy) == strategy
        left = count_cost(graph, strategy).macs / full
        assert left <= part + 0.005
        if strategy.widths != graph.widths:
            assert left >= part - 0.005 or strategy in strategies[:3]
        assert "depth" in dimensions or not strategy.removed_blocks
        assert "size" in dimensions or strategy.image_size is None
        assert "width" in dimensions or strategy.widths == graph.widths


def test_each_dimension_takes_its_part_of_what_has_to_go(graph):
    """Parts are of the logarithm of the MACs: half are drawn uniformly from the simplex of three parts, half from one
    of its six faces but the corner of image size, so that w, say, is 1, 0, u, u, 0 or a part of three."""
    full, parts = count_cost(graph, graph.widths).macs, []
    for strategy in sample_strategies(graph, Budget(macs=0.3), 300, seed=3, dimensions=ALL)[3:]:
        small = count_cost(graph, Strategy(graph.widths, (), strategy.image_size)).macs
        short = count_cost(graph, Strategy(graph.widths, strategy.removed_blocks, strategy.image_size)).macs
        left = count_cost(graph, strategy).macs
        parts.append(
            np.array([np.log(short / left), np.log(small / short), np.log(full / small)]) / np.log(full / left)
        )
    mean, spread = np.mean(parts, axis=0), np.std(parts, axis=0)
    assert mean == pytest.approx([0.361, 0.361, 0.278], abs=0.07)
    assert spread == pytest.approx([0.325, 0.325, 0.275], abs=0.06)


def test_some_draws_change_one_dimension_alone_or_two(graph):
    strategies = sample_strategies(graph, Budget(macs=0.4), 300, seed=3, dimensions=ALL)[3:]
    changed = [(s.widths != graph.widths, bool(s.removed_blocks), s.image_size is not None) for s in strategies]
    for face in ((True, False, False), (False, True, False), (True, True, False), (True, False, True)):
        assert changed.count(face) > 0.04 * len(strategies), face
    assert changed.count((True, True, True)) > 0.3 * len(strategies)
    alone = [s for s, face in zip(strategies, changed, strict=True) if not face[0]]
    assert all(Bounds(graph, Budget(macs=0.4)).meets(strategy_rows(graph, [s]))[0] for s in alone)
    assert len(set(alone)) > 0.9 * len(alone)


def test_children_of_networks_without_thinner_layers_are_such(graph):
    space = Space(Bounds(graph, Budget(macs=0.4)), 1, 0.7, ALL)
    proposer = Proposer(space, SearchConfig(macs=0.4, dimensions=ALL), 0, None)
    drawn = sample_strategies(graph, Budget(macs=0.4), 200, seed=5, dimensions=ALL)[3:]
    parents = [s for s in drawn if s.widths == graph.widths]
    assert {bool(s.image_size) for s in parents} == {False, True}
    children = [p.strategy for p in proposer.propose(range(32, 64), parents, set()) if p.origin == "evolution"]
    assert len(children) > 20
    assert all(child.widths == graph.widths and child.removed_blocks for child in children)


def test_every_second_proposal_changes_one_dimension_and_inherits_from_such(graph):
    space = Space(Bounds(graph, Budget(macs=0.4)), 1, 0.7, ALL)
    proposer = Proposer(space, SearchConfig(macs=0.4, dimensions=ALL), 0, None)
    drawn = [proposal.strategy for proposal in proposer.propose(range(4, 68), [], set())]
    born = proposer.propose(range(68, 132), drawn, set(drawn))
    assert [p.origin for p in born] == ["evolution"] * 64
    for strategies in (drawn, [p.strategy for p in born]):
        changed = [space.changed(strategy) for strategy in strategies]
        assert changed[1::4] == [("width",)] * 16
        assert changed[3::4] == [("depth",)] * 16
    longer = [strategy for strategy in drawn if space.changed(strategy) != ("depth",)]
    found = proposer.propose(range(68, 132), longer, set(drawn))
    assert [p.origin for p in found] == ["evolution", "evolution", "evolution", "random"] * 16


def test_where_one_dimension_alone_can_change_there_are_no_parts(graph):
    """All blocks are spared, so widths are all there is."""
    every = [block.name for block in graph.blocks]
    space = Space(Bounds(graph, Budget(macs=0.6)), 1, 0.7, ("width", "depth"), every)
    assert space.parts == []
    proposer = Proposer(space, SearchConfig(macs=0.6), 0, None)
    parents = [proposal.strategy for proposal in proposer.propose(range(16), [], set())]
    children = proposer.propose(range(16, 32), parents, set(parents))
    assert {proposal.origin for proposal in children} == {"evolution"}


def test_where_one_dimension_has_too_few_networks_all_are_searched(graph):
    """Two blocks may go, and one of them has to: two networks."""
    blocks = [block.name for block in graph.blocks]
    space = Space(Bounds(graph, Budget(macs=0.97, tolerance=0.05)), 1, 0.7, ("width", "depth"), blocks[2:])
    assert [part.dimensions for part in space.parts] == [("width",), ("depth",)]
    proposals = Proposer(space, SearchConfig(macs=0.97), 0, None).propose(range(40), [], set())
    strategies = [proposal.strategy for proposal in proposals]
    assert len(strategies) == 40
    alone = [s for s in strategies if space.changed(s) == ("depth",)]
    assert len(alone) == len(set(alone)) <= 3


def test_a_strategy_is_of_the_kind_that_takes_most_of_what_has_to_go(graph):
    space = Space(Bounds(graph, Budget(macs=0.4)), dimensions=ALL)
    strategies = sample_strategies(graph, Budget(macs=0.4), 100, seed=3, dimensions=ALL)
    full, kinds = count_cost(graph, graph.widths).macs, []
    for strategy in strategies:
        small = count_cost(graph, Strategy(graph.widths, (), strategy.image_size)).macs
        short = count_cost(graph, Strategy(graph.widths, strategy.removed_blocks, strategy.image_size)).macs
        parts = {"size": full / small, "depth": small / short, "width": short / count_cost(graph, strategy).macs}
        kinds.append(max(parts, key=parts.__getitem__))
    alone = [sum((s.widths != graph.widths, bool(s.removed_blocks), s.image_size is not None)) == 1 for s in strategies]
    assert space.kinds(strategies) == [
        kind if one else f"mostly {kind}" for kind, one in zip(kinds, alone, strict=True)
    ]
    assert kinds[:3] == ["width", "depth", "size"]
    assert Space(Bounds(graph, Budget(macs=0.4))).kinds([Strategy(graph.widths)]) == ["width"]


def test_one_dimension_alone_comes_first(graph):
    space = Space(Bounds(graph, Budget(macs=0.5)), 1, 0.7, ALL)
    singles = space.singles()
    assert list(singles) == ["uniform", "depth", "size"]
    assert not singles["uniform"].removed_blocks
    assert singles["depth"].widths == singles["size"].widths == graph.widths
    stages = [name.split(".")[0] for name in singles["depth"].removed_blocks]
    assert max(map(stages.count, set(stages))) - min(map(stages.count, set(stages))) <= 1
    assert singles["size"].image_size == 20
    assert not Space(Bounds(graph, Budget(macs=0.05)), 1, 0.7, ALL).singles()


def test_strategies_depend_on_seed_and_number_alone(graph):
    first = sample_strategies(graph, Budget(macs=0.4), 30, seed=5, dimensions=ALL)
    assert sample_strategies(graph, Budget(macs=0.4), 12, seed=5, dimensions=ALL) == first[:12]
    assert len(set(first)) == 30


def test_children_meet_the_budget_and_inherit_all_three(graph):
    space = Space(Bounds(graph, Budget(macs=0.4)), 1, 0.7, ALL)
    proposer = Proposer(space, SearchConfig(macs=0.4, dimensions=ALL), 0, None)
    parents = [s for s in sample_strategies(graph, Budget(macs=0.4), 40, seed=5, dimensions=ALL) if s.image_size == 24]
    children = [p for p in proposer.propose(range(32, 64), parents, set()) if p.origin == "evolution"]
    assert len(children) >= 16
    full = count_cost(graph, graph.widths).macs
    for child in children:
        left = count_cost(graph, child.strategy).macs / full
        assert left == pytest.approx(0.4, abs=0.0051) or (child.strategy.widths == graph.widths and left < 0.4)
    sizes = [child.strategy.image_size for child in children]
    assert sizes.count(24) > len(sizes) / 2
    parent = next(s for s in parents if s.removed_blocks and s.widths != graph.widths)
    born = [p.strategy for p in proposer.propose(range(32, 64), [parent] * 2, set()) if p.origin == "evolution"]
    kept = [len(set(parent.removed_blocks) & set(child.removed_blocks)) for child in born]
    assert np.mean(kept) > 0.7 * len(parent.removed_blocks) > 0


def test_several_bounds_hold_together(graph):
    budget = Budget(latency=0.5, macs=0.6)
    latency = per_channel(graph)
    strategies = sample_strategies(graph, budget, 20, latency=latency, dimensions=("width", "depth"))
    for strategy in strategies:
        assert Bounds(graph, budget, latency).meets(strategy_rows(graph, [strategy]))[0]


def test_blocks_with_layers_that_are_kept_stay(graph):
    assert spared_blocks(graph, ("layer2.1.conv1",)) == ("layer2.1",)
    assert spared_blocks(graph, ("layer1.*",)) == tuple(f"layer1.{n}" for n in range(9))
    assert spared_blocks(graph, ("layer1.*=0.5",)) == ()


def test_errors_say_what_to_do(graph):
    with pytest.raises(EagleEyeError, match="or add depth and size to `dimensions`"):
        sample_strategies(graph, Budget(macs=0.05), 2)
    with pytest.raises(EagleEyeError, match=r"or add width and depth to `dimensions`\.$"):
        Space(Bounds(graph, Budget(latency=0.05), per_channel(graph)), dimensions=("size",))
    with pytest.raises(EagleEyeError, match="`dimensions` are some of width, depth and size, each once"):
        SearchConfig(dimensions=())
    with pytest.raises(EagleEyeError, match="needs `size` among `dimensions`, which is width; add it"):
        SearchConfig(image_sizes=(128,))
    with pytest.raises(EagleEyeError, match="change widths alone"):
        SearchConfig(dimensions=("width", "depth"), sampler="paper")
    with pytest.raises(EagleEyeError, match=r"`image_size=30`: the network was traced for 16, 20, 24, 28, 32 pixels"):
        check_strategy(graph, Strategy(graph.widths, (), 30))
    with pytest.raises(EagleEyeError, match="`image_sizes`: the network takes no images of 100 pixels"):
        trace_model(make_model("levit_128s"), image_sizes=(100,))
