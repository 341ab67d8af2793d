import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from eagleeye_hf import (
    AdaptiveBNScore,
    Budget,
    EagleEyeError,
    ScoringConfig,
    choose_channels,
    sample_strategies,
    slice_model,
    trace_model,
)
from eagleeye_hf.evaluation.format import (
    FORMATS,
    Format,
    check_format,
    choose_format,
    fastest_format,
    native_format,
    rank_correlation,
)
from eagleeye_hf.evaluation.objective import Agreement, CustomObjective, Score, Seen
from eagleeye_hf.evaluation.preparation import Preparation
from eagleeye_hf.evaluation.score import NAMED_FORMATS
from eagleeye_hf.search.scorer import Scorer
from tests.helpers import make_model


@pytest.fixture(scope="module")
def example():
    model = make_model("resnet20_cifar")
    graph = trace_model(model)
    generator = torch.Generator().manual_seed(0)
    batches = [
        (torch.randn(16, 3, 32, 32, generator=generator), torch.randint(0, 10, (16,), generator=generator))
        for _ in range(6)
    ]
    return model, graph, batches[:2], batches[2:], sample_strategies(graph, Budget(macs=0.5), 4)


def by_hand(model, graph, calibration, holdout, widths, known=None) -> tuple[float, float]:
    """Slice, read the statistics of all calibration images layer by layer, count right answers.

    Args:
        known: all calibration images, by which channels are chosen, where statistics come from a part.
    """
    keep = choose_channels(model, graph, widths, "reconstruction", batches=known or calibration)
    thin = slice_model(model, graph, keep)
    inputs = {}
    layers = [m for m in thin.modules() if isinstance(m, nn.BatchNorm2d)]
    for layer in layers:
        layer.register_forward_pre_hook(lambda m, x: inputs.setdefault(m, []).append(x[0].detach().double()))
        layer.train()
        layer.momentum = 0.0
    with torch.no_grad():
        for images, _ in calibration:
            thin(images)
    for layer in layers:
        seen = torch.cat(inputs[layer])
        layer.running_mean.copy_(seen.mean((0, 2, 3)))
        layer.running_var.copy_(seen.var((0, 2, 3)))
    thin.eval()
    with torch.no_grad():
        logits = torch.cat([thin(images) for images, _ in holdout])
    labels = torch.cat([labels for _, labels in holdout])
    return nn.functional.cross_entropy(logits, labels).item(), (logits.argmax(1) == labels).float().mean().item()


def test_a_score_is_what_comes_out_by_hand(example):
    model, graph, calibration, holdout, strategies = example
    score = AdaptiveBNScore(model, graph, calibration, holdout)
    assert isinstance(score, Scorer)
    for strategy in strategies:
        loss, top1 = by_hand(model, graph, calibration, holdout, strategy.widths)
        found = score(strategy)
        assert found.loss == pytest.approx(loss, rel=1e-4)
        assert found.reported == pytest.approx(top1)
        assert found.num_images == 64
    loss, _ = by_hand(model, graph, calibration[:1], holdout[:1], strategies[1].widths, calibration)
    found = score(strategies[1], 0.25)
    assert found.num_images == 16
    assert found.loss == pytest.approx(loss, rel=1e-4)


def test_threads_score_the_same_to_the_bit(example):
    model, graph, calibration, holdout, strategies = example
    score = AdaptiveBNScore(model, graph, calibration, holdout, format=Format(channels_last=True, bfloat16=True))
    alone = [score(strategy) for strategy in strategies]
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(score, strategies * 2)) == alone * 2


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_formats_agree(example, format):
    model, graph, calibration, holdout, strategies = example
    exact = AdaptiveBNScore(model, graph, calibration, holdout)(strategies[1])
    assert AdaptiveBNScore(model, graph, calibration, holdout, format=format)(strategies[1]).loss == pytest.approx(
        exact.loss, rel=0.02
    )


def test_bfloat16_statistics_are_accumulated_in_float32(example):
    """Over 2,048 values of mean 100 and deviation 1 a sum in bfloat16 would be off by whole units."""
    layer = nn.Sequential(nn.BatchNorm2d(2))
    from eagleeye_hf import recalibrate_bn

    images = (torch.randn(8, 2, 32, 32) + 100).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        recalibrate_bn(layer, [images[:4], images[4:]])
    exact = images.double()
    assert layer[0].running_mean.tolist() == pytest.approx(exact.mean((0, 2, 3)).tolist(), rel=1e-5)
    assert layer[0].running_var.tolist() == pytest.approx(exact.var((0, 2, 3)).tolist(), rel=1e-3)


def test_prepare_measures_once_and_another_process_adopts(example, capsys):
    model, graph, calibration, holdout, strategies = example
    score = AdaptiveBNScore(model, graph, calibration, holdout)
    prepared = score.prepare(strategies)
    assert prepared.full.chance.reported == 0.1
    assert prepared.full.chance.loss == pytest.approx(np.log(10))
    assert 0 <= prepared.full.unchanged.reported <= 1
    assert (prepared.ranks, prepared.reports) == ("cross-entropy", "top-1")
    assert Preparation.from_dict(json.loads(json.dumps(asdict(prepared)))) == prepared
    assert str(prepared.format.chosen) in capsys.readouterr().err
    assert prepared.format == AdaptiveBNScore(model, graph, calibration, holdout).prepare(strategies).format
    other = AdaptiveBNScore(model, graph, calibration, holdout)
    other.adopt(prepared)
    assert other.format == score.format
    assert other(strategies[0]) == score(strategies[0])


def test_a_format_that_ranks_differently_is_not_taken():
    speeds = {one: 1.0 + one.channels_last + 2.0 * one.bfloat16 for one in FORMATS}
    losses = [1.0, 2.0, 3.0, 4.0]
    alike = choose_format(speeds, lambda format: losses)
    assert alike.chosen == Format(channels_last=True, bfloat16=True)
    assert alike.rank_correlation == pytest.approx(1)
    differently = choose_format(speeds, lambda format: losses[::-1] if format.bfloat16 else losses)
    assert differently.chosen == Format(channels_last=True)
    broken = choose_format(speeds, lambda format: [float("nan")] * 4 if format.bfloat16 else losses)
    assert broken.chosen == Format(channels_last=True)


def test_compensation_is_part_of_score_and_build_alike(example):
    model, graph, calibration, holdout, strategies = example
    score = AdaptiveBNScore(model, graph, calibration, holdout, compensate=True)
    built, filled = score.build(strategies[1]), score.builder.fill(strategies[1], True)
    for key, tensor in filled.state_dict().items():
        assert torch.equal(built.state_dict()[key], tensor), key
    plain = score.build(strategies[1], compensate=False)
    assert not torch.equal(plain.linear.weight, built.linear.weight)


@pytest.mark.parametrize("hopeless", [False, True])
def test_compensation_is_chosen_where_plain_scores_are_noise(example, hopeless, monkeypatch, capsys):
    """What typical candidates report without repaired readers and with; chance is a tenth."""
    model, graph, calibration, holdout, strategies = example
    score = AdaptiveBNScore(model, graph, calibration, holdout, compensate="auto", format="float32")

    def typical(strategy, fraction, format):
        reported = 0.3 if score.compensate else 0.12 if hopeless else 0.25
        return Score(loss=1.0, reported=reported, num_images=8)

    monkeypatch.setattr(score.objective, "measure", lambda model, batches: Score(loss=0, reported=0.9, num_images=8))
    monkeypatch.setattr(score, "score_part", typical)
    prepared = score.prepare(strategies)
    assert prepared.compensate is score.compensate is hopeless
    assert ("candidates are scored compensated" in capsys.readouterr().err) == hopeless
    again = AdaptiveBNScore(model, graph, calibration, holdout, compensate="auto", format="float32")
    again.adopt(Preparation.from_dict(json.loads(json.dumps(asdict(prepared)))))
    assert again.compensate is hopeless
    assert again.fingerprint()["compensate"] == "auto"


def test_weights_of_five_dimensions_are_scored_and_matched():
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = (nn.Sequential(nn.Conv2d(n, 16, 3), nn.BatchNorm2d(16), nn.ReLU()) for n in (3, 16))
            self.across, self.head = nn.Conv3d(1, 1, 3, padding=1), nn.Linear(16, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.b(self.across(self.a(x).unsqueeze(1)).squeeze(1)).mean((2, 3)))

    torch.manual_seed(0)
    model = Deep().eval()
    graph = trace_model(model, (3, 12, 12))
    batches = [(torch.randn(8, 3, 12, 12), torch.arange(8)) for _ in range(4)]
    score = AdaptiveBNScore(model, graph, batches[:2], batches[2:])
    strategy = sample_strategies(graph, Budget(macs=0.8), 1)[0]
    assert score(strategy).num_images == score(strategy, matched=2).num_images == 16


def test_what_ranks_is_part_of_the_fingerprint(example):
    model, graph, calibration, holdout, _ = example

    def fingerprint(**options: Any) -> dict[str, object]:
        return AdaptiveBNScore(model, graph, calibration, holdout, **options).fingerprint()

    assert fingerprint() == fingerprint()
    assert fingerprint() != fingerprint(objective=Agreement())
    losses = nn.functional.cross_entropy, nn.functional.multi_margin_loss
    first, second = (CustomObjective(loss=loss, report=loss) for loss in losses)
    assert fingerprint(objective=first) != fingerprint(objective=second)
    half = [(images.bfloat16(), labels) for images, labels in calibration]
    assert AdaptiveBNScore(model, graph, half, holdout).fingerprint()["images"] != fingerprint()["images"]


def test_nearly_as_fast_formats_do_not_flip():
    a, b, c, d = FORMATS
    assert fastest_format({a: 1.0, b: 1.0, c: 2.0, d: 1.9}) == fastest_format({a: 1.0, b: 1.0, c: 1.9, d: 2.0}) == c
    assert fastest_format({a: 2.0, b: 1.0, c: 1.0, d: 1.0}) == a
    assert fastest_format({a: 1.0, b: 1.0, c: 1.0, d: 1.5}) == d


def test_rank_correlation_is_spearmans():
    x = [3.0, 1.0, 2.0, 5.0]
    assert rank_correlation(x, [30.0, 10.0, 20.0, 50.0]) == pytest.approx(1)
    assert rank_correlation(x, [-v for v in x]) == pytest.approx(-1)
    y = [1.0, 2.0, 3.0, 4.0]  # ranks 2 0 1 3 against 0 1 2 3: 1 - 6 * (4 + 1 + 1) / (4 * 15)
    assert rank_correlation(x, y) == pytest.approx(1 - 6 * 6 / 60)
    assert np.isclose(rank_correlation([1.0], [2.0]), 1)


@pytest.mark.parametrize("name", ["auto", "measured", "float32", "bfloat16"])
def test_formats_have_names(example, name):
    model, graph, calibration, holdout, strategies = example
    score = AdaptiveBNScore(model, graph, calibration, holdout, format=name)
    prepared = score.prepare(strategies)
    assert (prepared.format is None) == (name in ("float32", "bfloat16"))
    assert score.format == (prepared.format.chosen if prepared.format else NAMED_FORMATS[name])
    assert score.fingerprint()["format"] == name
    with pytest.raises(EagleEyeError, match="`format` is one of auto, measured"):
        ScoringConfig(format="int8")


def test_a_native_format_that_fails_or_ranks_otherwise_is_left(example):
    losses = [1.0, 2.0, 3.0]
    native, safe = Format(channels_last=True, bfloat16=True), Format(channels_last=True)

    def fail(format):
        raise RuntimeError("no kernel")

    assert check_format(native, safe, lambda format: losses).chosen == native
    assert check_format(native, safe, lambda format: losses[::-1] if format.bfloat16 else losses).chosen == safe
    assert check_format(native, safe, fail).chosen == safe
    assert native_format(torch.device("cpu")) == native_format(torch.device("cpu"))
    assert not native_format(torch.device("meta")).bfloat16


@pytest.mark.parametrize("recorded", [False, True])
def test_what_follows_is_scored_alone_and_joined_with_what_is_known(example, recorded):
    model, graph, calibration, holdout, strategies = example
    score = AdaptiveBNScore(model, graph, calibration, holdout, format=Format())
    score.recorded = recorded
    first = score(strategies[1], 0.25)
    found = score(strategies[1], 1.0, Seen(0.25, first))
    known = by_hand(model, graph, calibration[:1], holdout[:1], strategies[1].widths, calibration)
    rest = by_hand(model, graph, calibration[1:], holdout[1:], strategies[1].widths, calibration)
    assert found.num_images == 64
    assert found.loss == pytest.approx((known[0] + 3 * rest[0]) / 4, rel=1e-3)
    assert found.reported == pytest.approx((known[1] + 3 * rest[1]) / 4)
    half = score(strategies[1], 0.5, Seen(0.25, first))  # no other calibration batch: the same again
    again = by_hand(model, graph, calibration[:1], holdout[1:2], strategies[1].widths, calibration)
    assert half.loss == pytest.approx((known[0] + again[0]) / 2, rel=1e-3)
    assert score(strategies[1], 0.3, Seen(0.5, half)) == half  # nothing follows
