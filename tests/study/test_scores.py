"""Scores of a sub-net, beside the search's own and the public functions'."""

import numpy as np
import pytest
import torch

from eagleeye_hf import (
    AdaptiveBNScore,
    Budget,
    EagleEyeError,
    choose_channels,
    evaluate_model,
    recalibrate_bn,
    sample_strategies,
    slice_model,
    trace_model,
)
from eagleeye_hf.channels.refill import RefilledModel
from eagleeye_hf.evaluation.format import Format
from eagleeye_hf.evaluation.objective import Agreement
from eagleeye_hf.pruning.compensate import collect_moments, compensate_readers
from eagleeye_hf.study.material import divide_draws, make_material
from eagleeye_hf.study.scores import higher_is_better, score_subnet
from tests.helpers import make_model


def batches(num: int, seed: int) -> list:
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(16, 3, 32, 32, generator=generator), torch.randint(0, 10, (16,), generator=generator))
        for _ in range(num)
    ]


@pytest.fixture(scope="module")
def subject():
    model = make_model("resnet20_cifar")
    graph = trace_model(model)
    draws, holdout = divide_draws(batches(4, 0), 2), batches(2, 1)
    score = AdaptiveBNScore(model, graph, draws[0], holdout, format=Format())
    (_, strategy) = sample_strategies(graph, Budget(macs=0.5), 2)
    return model, graph, draws, holdout, score, strategy


def test_every_variant_is_what_the_parts_give(subject):
    model, graph, draws, holdout, score, strategy = subject
    seen = []

    def match(thin, asked):
        seen.append(asked)
        return thin

    scores, seconds = score_subnet(make_material(score, draws), strategy, match)
    keep = choose_channels(model, graph, strategy.widths, "reconstruction", batches=draws[0])
    thin = slice_model(model, graph, keep)
    vanilla = evaluate_model(thin, holdout)
    assert scores["vanilla top-1"] == [pytest.approx(vanilla.top1)]
    assert scores["vanilla loss"] == [pytest.approx(vanilla.loss, rel=1e-4)]
    for draw, images in enumerate(draws):
        adaptive = evaluate_model(recalibrate_bn(thin, images), holdout)
        assert scores["adaptive loss"][draw] == pytest.approx(adaptive.loss, rel=1e-4)
        with torch.no_grad():
            taught = [(images, model(images)) for images, _ in holdout]
        divergence = Agreement().measure(thin, taught).loss
        assert scores["adaptive divergence"][draw] == pytest.approx(divergence, rel=1e-3)
    changed = compensate_readers(model, graph, keep, collect_moments(model, graph, draws[1]))
    repaired = RefilledModel(model, graph).fill(keep, changed)
    compensated = evaluate_model(recalibrate_bn(repaired, draws[1]), holdout)
    assert scores["compensated loss"][1] == pytest.approx(compensated.loss, rel=1e-4)
    assert scores["matched loss"] == [pytest.approx(scores["compensated loss"][0], rel=1e-5)]  # nothing was trained
    assert seen == [strategy]
    assert set(seconds) == {"vanilla", "adaptive", "compensated", "matched"}
    assert scores["adaptive loss"][0] != scores["adaptive loss"][1]


def test_what_ranks_which_way():
    assert higher_is_better("adaptive top-1")
    assert higher_is_better("parameters")
    assert not higher_is_better("matched divergence")


def test_draws_are_disjoint_and_equal_and_refused_where_there_are_too_few_images():
    whole = batches(5, 0)
    first, second = divide_draws(whole, 2)
    assert [np.asarray(images).shape for images, _ in (*first, *second)] == [(16, 3, 32, 32)] * 4
    assert torch.equal(second[0][0], whole[2][0])
    with pytest.raises(EagleEyeError, match="`draws=6`: the 80 calibration images are 5 batches; give more"):
        divide_draws(whole, 6)
