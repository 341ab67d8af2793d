"""Candidates in the full network's shapes score as thin ones do."""

import gc
import weakref

import numpy as np
import pytest
import torch
from torch import nn

from eagleeye_hf import AdaptiveBNScore, Budget, Strategy, recalibrate_bn, sample_strategies, trace_model
from eagleeye_hf.evaluation.format import Format
from eagleeye_hf.evaluation.objective import Agreement
from eagleeye_hf.evaluation.prepare import record_passes
from eagleeye_hf.evaluation.recorded import RecordedNetwork
from tests.helpers import make_model, randomise

NETWORKS = {
    "resnet20_cifar": 32,
    "mobilenetv3_small_050": 64,
    "regnety_002": 64,
    "efficientnet_b0": 64,
    "levit_128s": 224,  # keeps what it computed of its weights
    "densenet121": 64,
}
FIRST = list(NETWORKS)[:3]
OPTIONS = {"exact": {}, "compensated": {"compensate": True}, "paper": {"momentum": 0.9}}


def make_batches(size: int, num: int = 4) -> list:
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(8, 3, size, size, generator=generator), torch.randint(0, 10, (8,), generator=generator))
        for _ in range(num)
    ]


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in FIRST else pytest.mark.slow) for n in NETWORKS])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_scores_are_those_of_thin_networks(name, options):
    model = make_model(name, num_classes=10).double().float()
    size = NETWORKS[name]
    graph, batches = trace_model(model, (3, size, size)), make_batches(size)
    score = AdaptiveBNScore(model, graph, batches[:2], batches[2:], format=Format(), **options)
    strategies = sample_strategies(graph, Budget(macs=0.6), 4, divisor=1)
    expected = [score(strategy) for strategy in strategies]
    score.recorded = True
    found = [score(strategy) for strategy in strategies]
    assert len({s.loss for s in expected}) == len(strategies)
    assert [s.loss for s in found] == pytest.approx([s.loss for s in expected], rel=1e-3)
    again = score(strategies[0])  # nothing of the candidates between is left
    assert again.loss == pytest.approx(found[0].loss, rel=1e-6)


def test_networks_that_divide_by_what_is_removed_stay_thin(capsys):
    model = make_model("resnet20_cifar")
    for block in (*model.layer1, *model.layer2):
        nn.utils.parametrizations.weight_norm(block.conv1)
    graph, batches = trace_model(model), make_batches(32)
    score = AdaptiveBNScore(model, graph, batches[:2], batches[2:], format=Format())
    assert not record_passes(score, sample_strategies(graph, Budget(macs=0.5), 3))
    assert "passes are not recorded: the statistics of" in capsys.readouterr().err


def test_what_was_removed_is_not_trained():
    model = make_model("resnet20_cifar")
    graph = trace_model(model)
    block = next(block for block in graph.blocks if block.removable)
    group = next(group for group in graph.prunable if group.name not in block.groups)
    network = RecordedNetwork(model, graph, Format()).fill({group.name: np.arange(8)}, {}, [block.name])
    member = next(m for m in group.members if m.tensor.endswith("weight") and m.dim == 0)
    parameters = dict(network.network.named_parameters())
    with network.trained() as mask:
        for parameter in parameters.values():
            parameter.grad = torch.ones_like(parameter)
        mask()
        rows = parameters[member.tensor].grad.flatten(1).sum(1)
        assert torch.equal(rows.nonzero().flatten(), torch.arange(8))
        assert all(parameters[name].grad is None for name in block.zeroed)
    layer = member.tensor.removesuffix(".weight").replace("conv", "bn")
    kept = network.channels_of([layer])[layer]
    assert kept.sum() == 8
    assert kept[:8].all()


def test_what_fails_keeps_no_memory(monkeypatch):
    """A pool then tries once more, alone."""
    model = make_model("resnet20_cifar")
    graph, batches = trace_model(model), make_batches(32)
    score = AdaptiveBNScore(model, graph, batches[:2], batches[2:], format=Format())
    score.recorded = True
    expected = score(Strategy(graph.widths))
    assert score.network is not None

    def fails(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    held = weakref.ref(score.network)
    gc.disable()
    try:
        with monkeypatch.context() as patched:
            patched.setattr(RecordedNetwork, "recalibrate", fails)
            with pytest.raises(torch.OutOfMemoryError):
                score(Strategy(graph.widths))
        assert held() is None
    finally:
        gc.enable()
    assert score(Strategy(graph.widths)) == expected


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in FIRST else pytest.mark.slow) for n in NETWORKS])
def test_matched_candidates_too(name):
    model = make_model(name, num_classes=10)
    size = NETWORKS[name]
    graph = trace_model(model, (3, size, size))
    with torch.no_grad():
        batches = [(images, model(images)) for images, _ in make_batches(size)]
    score = AdaptiveBNScore(model, graph, batches[:2], batches[2:], format=Format(), objective=Agreement())
    strategies = sample_strategies(graph, Budget(macs=0.6), 3, divisor=1)
    plain, expected = ([score(strategy, matched=steps).loss for strategy in strategies] for steps in (0, 8))
    assert sum(expected) < 0.95 * sum(plain)
    score.recorded = True
    assert [score(strategy, matched=8).loss for strategy in strategies] == pytest.approx(expected, rel=1e-2)


def test_a_network_whose_image_alone_is_smaller_may_keep_its_statistics():
    model, batches = make_model("resnet20_cifar", num_classes=10), make_batches(32)
    graph = trace_model(model, image_sizes=(24,))
    recalibrate_bn(model, [images for images, _ in batches])
    with torch.no_grad():
        holdout = [(images, model(images).argmax(1)) for images, _ in batches[2:]]
    misleading = [(3 * images + 1, labels) for images, labels in batches[:2]]
    score = AdaptiveBNScore(model, graph, misleading, holdout, format=Format())
    strategy = Strategy(graph.widths, image_size=24)
    expected = score(strategy)
    score.recorded = True
    assert score(strategy).loss == pytest.approx(expected.loss, rel=1e-3)
    recalibrate_bn(model, [nn.functional.interpolate(images, 24) for images, _ in misleading])
    score = AdaptiveBNScore(model, graph, misleading, holdout, format=Format())
    assert score(strategy).loss > 1.1 * expected.loss, "recomputed ones are worse"


def test_passes_are_recorded_only_where_scores_stay(monkeypatch):
    model = make_model("resnet20_cifar")
    graph, batches = trace_model(model), make_batches(32)
    score = AdaptiveBNScore(model, graph, batches[:2], batches[2:], format=Format())
    examples = sample_strategies(graph, Budget(macs=0.5), 3)
    assert record_passes(score, examples)
    fill = RecordedNetwork.fill
    monkeypatch.setattr(RecordedNetwork, "fill", lambda self, keep, changed, removed: fill(self, {}))
    assert not record_passes(score, examples)
    assert not score.recorded

    def fails(*_: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(RecordedNetwork, "fill", fails)
    assert not record_passes(score, examples)
    assert score(examples[0]).num_images == 16


class OneIsUnused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.unused = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(images)).mean((2, 3))


@pytest.mark.parametrize("momentum", [None, 0.5])
def test_statistics_are_those_of_recalibrate_bn(momentum):
    model = randomise(OneIsUnused())
    network = RecordedNetwork(model, trace_model(make_model("resnet20_cifar")), Format())
    batches = make_batches(32)
    for _ in range(2):  # nothing of the first time is left
        network.fill({}).recalibrate([images for images, _ in batches], momentum)
    torch.testing.assert_close(network.network.unused.running_mean, model.unused.running_mean)
    expected = recalibrate_bn(model, batches, momentum)
    for name in ("running_mean", "running_var"):
        found, wanted = (getattr(net.norm, name) for net in (network.network, expected))
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_a_full_strategy_is_the_full_network():
    model = make_model("resnet20_cifar")
    graph, batches = trace_model(model), make_batches(32)
    score = AdaptiveBNScore(model, graph, batches[:2], batches[2:], format=Format())
    expected = score(Strategy(graph.widths))
    score.recorded = True
    assert score(Strategy(graph.widths)).loss == pytest.approx(expected.loss, rel=1e-4)
