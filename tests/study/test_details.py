"""What is told of statistics, weights and numbers of images, on values worked out by hand."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from eagleeye_hf.study.analysis import image_rows, layer_rows
from eagleeye_hf.study.details import Details, compare_statistics, compare_weights


def network(mean: float, variance: float) -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, eps=0.0))
    model[1].running_mean.fill_(mean)
    model[1].running_var.fill_(variance)
    return model


def test_distances_are_in_standard_deviations_of_the_statistics_after_fine_tuning():
    (row,) = compare_statistics(network(5.0, 16.0), network(2.5, 4.0), network(1.0, 4.0))
    assert row["layer"] == "1"
    assert row["mean_full"] == pytest.approx(2.0)
    assert row["mean_adaptive"] == pytest.approx(0.75)
    assert row["variance_full"] == pytest.approx(math.log(4))
    assert row["variance_adaptive"] == pytest.approx(0.0)


def test_weights_that_all_move_by_their_standard_deviation_shift_by_one():
    before = network(0.0, 1.0)
    after = copy.deepcopy(before)
    deviation = before[0].weight.detach().std(correction=0)
    with torch.no_grad():
        after[0].weight += deviation
    (row,) = compare_weights(before, after)
    assert row["layer"] == "0"
    assert row["distance"] == pytest.approx(1.0, abs=1e-5)
    expected = float(deviation) * math.sqrt(before[0].weight.numel()) / float(before[0].weight.detach().norm())
    assert row["change"] == pytest.approx(expected, rel=1e-5)
    assert sum(row["before"]) == before[0].weight.numel()
    (same,) = compare_weights(before, before)
    assert same["change"] == same["distance"] == 0.0


def details(index: int, losses: list[list[float]]) -> Details:
    images = [
        {
            "form": "exact",
            "calibration_images": 128,
            "draw": draw,
            "seconds": 0.5,
            "seconds_per_holdout_image": 0.001,
            "holdout_images": 256,
            "losses": own,
        }
        for draw, own in enumerate(losses)
    ]
    layers = [{"layer": name, "mean_full": float(index)} for name in ("a", "b")]
    return Details(index=index, batchnorm=layers, weights=[], images=images)


def test_more_images_are_averaged_and_noise_is_between_draws():
    pool = [
        details(0, [[1.0, 2.0], [1.2, 2.2]]),
        details(1, [[3.0, 1.0], [3.0, 1.0]]),
        details(2, [[5.0, 3.0], [5.2, 3.2]]),
    ]
    few, all_images = image_rows(pool, {0: 0.9, 1: 0.8, 2: 0.7}, "macs=0.5")
    assert (few["holdout_images"], all_images["holdout_images"]) == (128, 256)
    assert all_images["spearman"] == pytest.approx(1.0)  # 1.5 and 1.7, 2 and 2, 4 and 4.2: as the accuracy falls
    assert few["spearman"] == pytest.approx((1.0 + 0.5) / 2)  # the second block puts the second sub-net first
    within = math.sqrt((0.02 + 0.0 + 0.02) / 3)
    assert all_images["noise"] == pytest.approx(within / np.std([1.6, 2.0, 4.1]))
    assert all_images["seconds"] == pytest.approx(0.5 + 0.256)


def test_layers_come_in_their_order_with_medians():
    rows = layer_rows([details(index, [[1.0]]) for index in (1, 7, 3)], "batchnorm", "macs=0.5")
    assert [(row["depth"], row["layer"], row["mean_full"]) for row in rows] == [(1, "a", 3.0), (2, "b", 3.0)]
