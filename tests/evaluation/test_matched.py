"""Scores after a few steps of training without labels."""

import copy
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from eagleeye_hf import (
    AdaptiveBNScore,
    Budget,
    EagleEyeError,
    recalibrate_bn,
    sample_strategies,
    slice_model,
    trace_model,
)
from eagleeye_hf.evaluation.format import Format
from eagleeye_hf.evaluation.layers import matched_layers
from eagleeye_hf.evaluation.matched import match_briefly
from eagleeye_hf.evaluation.memory import matching_parts, training_bytes
from eagleeye_hf.evaluation.objective import Agreement
from tests.helpers import make_model


@pytest.fixture(scope="module")
def example():
    """Smooth images, and the full network's own outputs for labels."""
    model = make_model("resnet20_cifar", num_classes=10)
    graph = trace_model(model, image_sizes=(24,))
    generator = torch.Generator().manual_seed(0)
    images = nn.functional.interpolate(torch.randn(192, 3, 4, 4, generator=generator), 32, mode="bilinear")
    with torch.no_grad():
        batches = [(part, model(part)) for part in images.split(32)]
    strategies = sample_strategies(graph, Budget(macs=0.6), 6, seed=1, dimensions=("width", "depth", "size"))
    return model, graph, batches[:4], batches[4:], strategies


def score_of(example, **options) -> AdaptiveBNScore:
    model, graph, calibration, holdout, _ = example
    return AdaptiveBNScore(model, graph, calibration, holdout, objective=Agreement(), format=Format(), **options)


def test_matched_candidates_come_nearer_to_the_full_network(example):
    score, strategies = score_of(example, compensate=True), example[-1]
    before = copy.deepcopy(example[0].state_dict())
    plain, matched = ([score(strategy, matched=given) for strategy in strategies] for given in (0, 16))
    assert all(found.matched == 16 and found.num_images == 64 for found in matched)
    assert not any(found.matched for found in plain)
    assert sum(found.loss for found in matched) < 0.8 * sum(found.loss for found in plain)
    for name, tensor in example[0].state_dict().items():
        assert torch.equal(tensor, before[name]), "the full network stays as it is"
    assert not any(module._forward_hooks for module in example[0].modules())


def test_threads_and_labels_change_nothing(example):
    model, graph, calibration, holdout, strategies = example
    score = score_of(example)
    expected = [score(strategy, matched=16) for strategy in strategies[:4]]
    other = [(images, torch.zeros_like(wanted)) for images, wanted in calibration]
    again = AdaptiveBNScore(model, graph, other, holdout, objective=Agreement(), format=Format())
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(partial(again, matched=16), strategies[:4])) == expected


def test_nothing_in_it_is_random():
    class Dropped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
            self.last = nn.Linear(8, 4)

        def forward(self, x):
            x = self.norm(self.first(x)).relu()
            return self.last(nn.functional.dropout(x.mean((2, 3)), 0.5, self.training))

    full, images = Dropped().eval(), [torch.randn(16, 3, 8, 8) for _ in range(3)]
    graph = trace_model(full, (3, 8, 8))
    keep = {graph.prunable[0].name: torch.arange(5)}
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        thin = recalibrate_bn(slice_model(full, graph, keep), images)
        kept = matched_layers(full, graph, keep)
        match_briefly(thin, full, kept, images, images, 8, 2, lambda: Format().autocast(torch.device("cpu")))
        results.append(thin.state_dict())
    assert all(torch.equal(tensor, results[1][name]) for name, tensor in results[0].items())


def test_a_candidate_that_training_harms_counts_as_it_was(example, monkeypatch):
    def harm(thin, **others):
        nn.init.normal_(list(thin.parameters())[-1], std=10)

    score, strategy = score_of(example), example[-1][1]
    monkeypatch.setattr("eagleeye_hf.evaluation.score.match_briefly", harm)
    before, after = score(strategy), score(strategy, matched=16)
    assert after.matched
    assert after.loss == before.loss


@pytest.mark.parametrize("recorded", [False, True])
def test_frozen_and_half_precise_networks_are_matched_as_others(example, recorded):
    model, graph, calibration, holdout, strategies = example
    options = {"objective": Agreement(), "format": Format(bfloat16=True)}
    losses = []
    for change in (lambda model: model, lambda model: model.requires_grad_(False), lambda model: model.half()):
        score = AdaptiveBNScore(change(copy.deepcopy(model)), graph, calibration, holdout, **options)
        score.recorded = recorded
        losses.append(score(strategies[0], matched=8).loss)
    plain = score(strategies[0]).loss
    assert losses[0] < 0.9 * plain
    assert losses[1] == losses[0]
    assert losses[2] == pytest.approx(losses[0], rel=0.03)


def test_an_interrupted_match_leaves_nothing_behind(example, monkeypatch):
    score, strategy = score_of(example), example[-1][0]
    score.recorded = True
    with monkeypatch.context() as patched:
        patched.setattr(torch.Tensor, "backward", interrupt)
        with pytest.raises(KeyboardInterrupt):
            score(strategy, matched=8)
    network = score.network.network
    assert not any(module._forward_hooks or module.training for module in network.modules())
    assert not any(p.requires_grad or p.grad is not None for p in network.parameters())


def interrupt(*_):
    raise KeyboardInterrupt


def test_a_training_that_diverges_counts_for_nothing(example, monkeypatch):
    def explode(thin, **others):
        nn.init.constant_(next(thin.parameters()), float("inf"))

    score, strategy = score_of(example), example[-1][1]
    monkeypatch.setattr("eagleeye_hf.evaluation.score.match_briefly", explode)
    assert score(strategy, matched=16) == replace(score(strategy), matched=16)


@pytest.mark.parametrize("options", [{}, {"compensate": True, "momentum": 0.9}], ids=["exact", "repaired, paper"])
def test_in_the_full_networks_shapes_they_score_the_same(example, options):
    """Removed blocks and smaller images among them; what was removed stays so while the rest is trained."""
    score, strategies = score_of(example, **options), example[-1][:3]
    plain = [score(strategy) for strategy in strategies]
    expected = [score(strategy, matched=16) for strategy in strategies]
    assert sum(found.loss for found in expected) < 0.9 * sum(found.loss for found in plain)
    score.recorded = True
    found = [score(strategy, matched=16) for strategy in strategies]
    assert [s.loss for s in found] == pytest.approx([s.loss for s in expected], rel=1e-3)
    again = score(strategies[0])  # nothing of training is left
    assert again.loss == pytest.approx(plain[0].loss, rel=1e-3)
    assert not any(p.requires_grad or p.grad is not None for p in score.network.network.parameters())


def test_memory_counts_every_layer():
    """Two maps of 8 channels, 16 x 16 and 8 x 8."""
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.MaxPool2d(2), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))
    assert training_bytes(model, (3, 16, 16)) == 5 * 4 * 8 * (256 + 64)


def test_a_gpu_matches_by_as_few_images_as_it_has_memory_for(monkeypatch, example, capsys):
    gpu = torch.device("cuda")
    for gigabytes, parts in ((80, 2), (2.9, 3), (1.5, 8), (1.3, None)):  # one for images, half of the rest for a step
        found = SimpleNamespace(total_memory=gigabytes * 1e9)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device, found=found: found)
        assert matching_parts(int(30e6), 64, int(1e9), gpu) == parts
    assert matching_parts(int(30e6), 4, 0, gpu) == 2, "there are no more images"
    assert matching_parts(int(30e6), 64, int(1e9), torch.device("cpu")) == 2
    score = score_of(example)
    score.matching_parts = None
    with pytest.raises(EagleEyeError, match="score unmatched"):
        score(example[-1][0], matched=16)
    assert not score.prepare(example[-1][:3]).matches
    assert "leaders are not matched" in capsys.readouterr().err
