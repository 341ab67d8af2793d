"""Layers that a user wants left alone."""

import pytest
import timm

from eagleeye_hf import Budget, EagleEyeError, SearchConfig, run_search, sample_strategies, trace_model
from eagleeye_hf.evaluation.objective import Score
from eagleeye_hf.search.scorer import FunctionScorer
from eagleeye_hf.strategies.keeping import largest_ratios

GRAPH = trace_model(timm.create_model("mobilenetv3_small_050"), (3, 64, 64))
PLACES = {group.name: place for place, group in enumerate(GRAPH.prunable)}


def limits(*keep: str) -> dict[str, float]:
    found = largest_ratios(GRAPH, 0.7, keep)
    assert not isinstance(found, float)
    return dict(zip(PLACES, found, strict=True))


def test_patterns_fit_layers_and_the_modules_around_them():
    assert largest_ratios(GRAPH, 0.7) == 0.7
    some = limits("blocks.1.*", "conv_head=0.25")
    assert {name for name, limit in some.items() if limit == 0} >= {n for n in PLACES if n.startswith("blocks.1.")}
    assert some["conv_head"] == 0.25
    assert limits("blocks.1")["blocks.1.0.conv_pw"] == 0
    assert limits("blocks.1*=0.5", "blocks.1.0.conv_pw=0.2", "*.conv_pw=0.4")["blocks.1.0.conv_pw"] == 0.2


def test_a_layer_stays_by_the_name_of_any_that_gives_its_channels():
    """A residual stream is one group, named after its first layer; its second layer names it as well."""
    shared = next(g for g in GRAPH.prunable if len({m.tensor for m in g.members if m.tensor.endswith("weight")}) > 4)
    givers = {m.tensor.rpartition(".")[0] for m in shared.members if m.dim == 0}
    for name in givers:
        assert limits(name)[shared.name] == 0


def test_what_is_kept_stays_in_every_strategy_and_the_budget_holds():
    keep = ("blocks.0*", "conv_head=0.3")
    ratios = largest_ratios(GRAPH, 0.85, keep)
    strategies = sample_strategies(GRAPH, Budget(macs=0.6), 40, max_ratio=ratios)
    found = run_search(
        FunctionScorer(lambda strategy, fraction: Score(loss=float(sum(strategy.widths)), reported=0.5, num_images=1)),
        GRAPH,
        SearchConfig(macs=0.6, candidates=40, generation=10, divisor=1, max_ratio=0.85, keep=keep, stages=(1.0,)),
    )
    strategies += [candidate.strategy for candidate in found.candidates]
    assert any(candidate.origin == "evolution" for candidate in found.candidates)
    names = [group.name for group in GRAPH.groups]
    for strategy in strategies:
        widths = dict(zip(names, strategy.widths, strict=True))
        for group in GRAPH.prunable:
            limit = limits(*keep)[group.name]
            assert widths[group.name] >= group.channels * (1 - (0.85 if limit == 0.7 else limit)) - 1e-9
    head = [dict(zip(names, s.widths, strict=True))["conv_head"] for s in strategies]
    assert min(head) < GRAPH.widths[names.index("conv_head")]


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (["no_such_layer"], r"`keep=no_such_layer` fits no layer whose channels could be removed; there are conv_stem"),
        (["*"], r"`keep=\*` keeps every channel, so there is nothing to remove"),
    ],
)
def test_patterns_that_fit_nothing_or_all(keep, message):
    with pytest.raises(EagleEyeError, match=message):
        largest_ratios(GRAPH, 0.7, keep)


@pytest.mark.parametrize("keep", ["head=1", "head=x", "=0.5", "head=-0.1"])
def test_bad_patterns_are_refused_at_once(keep):
    with pytest.raises(EagleEyeError, match=rf"`keep={keep}` is a layer's name or a pattern"):
        SearchConfig(keep=(keep,))


def test_a_budget_that_needs_what_is_kept_is_out_of_reach():
    ratios = largest_ratios(GRAPH, 0.7, ["blocks.*"])
    with pytest.raises(EagleEyeError, match=r"out of reach: with `max_ratio=0.7`, what `keep` spares and `divisor=1`"):
        sample_strategies(GRAPH, Budget(macs=0.3), 4, max_ratio=ratios)
