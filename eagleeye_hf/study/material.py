"""What sub-nets are scored on: the full network, draws of calibration images, and the holdout images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eagleeye_hf.channels.graph import ChannelGraph
from eagleeye_hf.errors import EagleEyeError
from eagleeye_hf.evaluation.batchnorm import recalibrate_bn
from eagleeye_hf.evaluation.format import Format
from eagleeye_hf.evaluation.score import AdaptiveBNScore
from eagleeye_hf.networks.running import Batch, channels_last, evaluation_mode, run_model
from eagleeye_hf.networks.threads import one_thread
from eagleeye_hf.pruning.builder import Builder
from eagleeye_hf.strategies.strategy import Strategy


@dataclass(frozen=True, kw_only=True)
class Outcomes:
    """Of a network on images, one number per image."""

    losses: np.ndarray
    """Cross-entropy."""
    hits: np.ndarray
    """Whether the label scores highest."""
    divergences: np.ndarray
    """Of the outputs from the full network's (Kullback-Leibler)."""

    def means(self, num: int | None = None) -> dict[str, float]:
        """Of the first `num` images, by name."""
        named = {"top-1": self.hits, "loss": self.losses, "divergence": self.divergences}
        return {name: float(values[:num].mean()) for name, values in named.items()}


@dataclass(frozen=True, kw_only=True)
class Material:
    """The full network and images in the format in which the search scores."""

    model: nn.Module
    graph: ChannelGraph
    score: AdaptiveBNScore
    """The search's, on the first draw."""
    builders: tuple[Builder, ...]
    """One per draw: compensation goes by its calibration images."""
    draws: tuple[list[Tensor], ...]
    """Batches of calibration images."""
    holdout: list[Batch]
    wanted: list[Tensor]
    """The full network's outputs on the holdout images."""
    format: Format

    def build(self, strategy: Strategy, compensate: bool = False, draw: int = 0) -> nn.Module:
        """A thin network with the full network's statistics."""
        thin = self.builders[draw].build(strategy, compensate)
        return channels_last(thin) if self.format.channels_last else thin

    def build_full(self) -> nn.Module:
        """The full network, a copy."""
        return self.build(Strategy(self.graph.widths))

    def recalibrate(self, thin: nn.Module, batches: Iterable[Tensor], momentum: float | None = None) -> nn.Module:
        with one_thread(), self.format.autocast(self.score.device):
            return recalibrate_bn(thin, batches, momentum)

    def look(self, network: nn.Module) -> Outcomes:
        """What a network gives on the holdout images."""
        losses, hits, divergences = [], [], []
        for (images, labels), wanted in zip(self.holdout, self.wanted, strict=True):
            found = self.run(network, images)
            losses.append(F.cross_entropy(found, labels, reduction="none"))
            hits.append(found.argmax(1) == labels)
            told = wanted.log_softmax(1)
            divergences.append(F.kl_div(found.log_softmax(1), told, reduction="none", log_target=True).sum(1))
        values = [torch.cat(parts).double().numpy() for parts in (losses, hits, divergences)]
        return Outcomes(losses=values[0], hits=values[1], divergences=values[2])

    def run(self, network: nn.Module, images: Tensor) -> Tensor:
        """Outputs, in float32 on the CPU."""
        with one_thread(), evaluation_mode(network), torch.no_grad(), self.format.autocast(self.score.device):
            return run_model(network, images).float().cpu()


def make_material(score: AdaptiveBNScore, draws: Sequence[Sequence[Batch]]) -> Material:
    """
    Args:
        score: the search's, after it has chosen its format; its calibration images are the first draw.
        draws: batches of calibration images.
    """
    format = score.format or Format()
    first, holdout = score.images.take(format)
    home = first[0].device
    others = [[format.convert(images.to(home)) for images, _ in draw] for draw in draws[1:]]
    kept = score.builder.importance  # whichever images: draws differ in statistics and repair alone
    builders = [Builder(score.model, score.graph, draw, importance=kept) for draw in draws[1:]]
    material = Material(
        model=score.model,
        graph=score.graph,
        score=score,
        builders=(score.builder, *builders),
        draws=(first, *others),
        holdout=holdout,
        wanted=[],
        format=format,
    )
    full = material.build_full()
    material.wanted.extend(material.run(full, images) for images, _ in holdout)
    return material


def divide_draws(batches: Sequence[Batch], draws: int) -> list[list[Batch]]:
    """The calibration images in equal parts, whole batches of them.

    Raises:
        EagleEyeError: there are fewer batches than parts.
    """
    if len(batches) < draws:
        num = sum(len(labels) for _, labels in batches)
        raise EagleEyeError(
            f"`draws={draws}`: the {num} calibration images are {len(batches)} batches; give more with "
            "`calibration_images`, or fewer draws"
        )
    size = len(batches) // draws
    return [list(batches[draw * size : (draw + 1) * size]) for draw in range(draws)]
