"""What a fine-tuned sub-net tells beside its accuracy: its statistics, its weights, and scores on other images."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import load_file
from scipy.stats import wasserstein_distance
from torch import Tensor, nn

from eagleeye_hf.evaluation.batchnorm import batch_norms
from eagleeye_hf.search.candidate import Candidate
from eagleeye_hf.study.material import Material

MOMENTUM = 0.9
"""Of the paper's moving average (eq. 4)."""
BLOCK = 128
"""Holdout images whose mean loss is kept; and calibration images of a batch."""
FEWEST, GROWTH = 64, 4
"""The smallest number of calibration images, and the factor to the next."""
REPEATS = 2
"""Disjoint draws of the same number of calibration images."""
EDGES = np.linspace(-4, 4, 41)
"""Of the histograms of weights, in standard deviations of a layer's weights before fine-tuning."""


@dataclass(frozen=True, kw_only=True)
class Details:
    """Of one sub-net; rows are as tables have them."""

    index: int
    batchnorm: list[dict[str, Any]]
    """Per layer: distances of the full network's and of the adaptive statistics from those after fine-tuning."""
    weights: list[dict[str, Any]]
    """Per layer: how far fine-tuning moved them, and histograms before and after."""
    images: list[dict[str, Any]]
    """Per number of calibration images, form and draw: seconds, and the mean loss of each block of holdout images."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Details:
        return Details(**data)


def examine(material: Material, candidate: Candidate, weights: Path) -> Details:
    """Look at a sub-net before and after fine-tuning; nothing is trained.

    Args:
        weights: those after fine-tuning.
    """
    full = material.build(candidate.strategy)
    adaptive = material.recalibrate(material.build(candidate.strategy), material.draws[0])
    tuned = material.build(candidate.strategy)
    tuned.load_state_dict(load_file(weights))
    shift = list(compare_weights(full, tuned))
    true = material.recalibrate(tuned, material.draws[-1])
    return Details(
        index=candidate.index,
        batchnorm=list(compare_statistics(full, adaptive, true)),
        weights=shift,
        images=list(score_numbers(material, candidate)),
    )


def compare_statistics(full: nn.Module, adaptive: nn.Module, true: nn.Module) -> Iterator[dict[str, Any]]:
    """Per BatchNorm layer: root mean squares over channels, of the means' distance in standard deviations, and of the
    logarithm of the variances' ratio."""
    names = {id(module): name for name, module in full.named_modules()}
    for layer, recomputed, after in zip(*map(batch_norms, (full, adaptive, true)), strict=True):
        mean, variance = (cast(Tensor, tensor).double() for tensor in (after.running_mean, after.running_var))
        row: dict[str, Any] = {"layer": names[id(layer)]}
        for kind, found in (("full", layer), ("adaptive", recomputed)):
            means, variances = (cast(Tensor, tensor).double() for tensor in (found.running_mean, found.running_var))
            apart = (means - mean) / (variance + layer.eps).sqrt()
            ratio = ((variances + layer.eps) / (variance + layer.eps)).log()
            row[f"mean_{kind}"] = float(apart.square().mean().sqrt())
            row[f"variance_{kind}"] = float(ratio.square().mean().sqrt())
        yield row


def compare_weights(before: nn.Module, after: nn.Module) -> Iterator[dict[str, Any]]:
    """Per layer with a kernel or a matrix: the length of the change over that of the weights, and the Wasserstein
    distance of the two distributions in standard deviations of the first."""
    trained = dict(after.named_parameters())
    for name, parameter in before.named_parameters():
        if parameter.ndim < 2:
            continue
        old, new = (tensor.detach().cpu().double().flatten().numpy() for tensor in (parameter, trained[name]))
        scale = float(old.std()) or 1.0
        yield {
            "layer": name.removesuffix(".weight"),
            "change": float(np.linalg.norm(new - old) / max(float(np.linalg.norm(old)), 1e-12)),
            "distance": float(wasserstein_distance(old / scale, new / scale)),
            "before": _histogram(old / scale),
            "after": _histogram(new / scale),
        }


def _histogram(values: np.ndarray) -> list[int]:
    return np.histogram(values, EDGES)[0].tolist()


def score_numbers(material: Material, candidate: Candidate) -> Iterator[dict[str, Any]]:
    """The sub-net's losses with statistics from ever more calibration images, exact and as a moving average."""
    images = torch.cat([batch for draw in material.draws for batch in draw])
    for form, momentum, repeats in (("exact", None, REPEATS), ("momentum", MOMENTUM, 1)):
        num = FEWEST
        while num <= len(images):
            for draw in range(min(repeats, len(images) // num)):
                thin = material.build(candidate.strategy)
                started = time.perf_counter()
                material.recalibrate(thin, images[draw * num : (draw + 1) * num].split(BLOCK), momentum)
                recalibrated = time.perf_counter()
                losses = material.look(thin).losses
                looked = time.perf_counter()
                yield {
                    "form": form,
                    "calibration_images": num,
                    "draw": draw,
                    "seconds": recalibrated - started,
                    "seconds_per_holdout_image": (looked - recalibrated) / len(losses),
                    "holdout_images": len(losses),
                    "losses": [float(part.mean()) for part in np.array_split(losses, max(1, len(losses) // BLOCK))],
                }
            num *= GROWTH
