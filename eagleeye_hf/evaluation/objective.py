"""What ranks candidates, and what is reported beside it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eagleeye_hf.evaluation.metrics import evaluate_model
from eagleeye_hf.networks.running import Batch, evaluation_mode, run_model


@dataclass(frozen=True, kw_only=True)
class Score:
    """What a network reaches on some images."""

    loss: float
    """Ranks: the lower, the better."""
    reported: float
    """For people, the higher, the better; the objective names it."""
    num_images: int
    matched: int = 0
    """Steps without labels that it was trained first."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Score:
        return Score(**{**data, "matched": int(data.get("matched", 0))})

    def join(self, other: Score) -> Score:
        """On the images of both."""
        num = self.num_images + other.num_images
        pairs = ((self.loss, other.loss), (self.reported, other.reported))
        loss, reported = ((a * self.num_images + b * other.num_images) / num for a, b in pairs)
        return Score(loss=loss, reported=reported, num_images=num)


class Seen(NamedTuple):
    """What a candidate has behind it: its score on this fraction of the images."""

    fraction: float
    score: Score


class Objective(Protocol):
    """How networks are compared."""

    ranks: str
    """Name of what ranks, as cross-entropy."""
    reports: str
    """Name of what is reported, as top-1."""

    def measure(self, model: nn.Module, batches: Iterable[Batch]) -> Score:
        """Score a network on images with their labels."""

    def chance(self, model: nn.Module, batch: Batch) -> Score:
        """What a network that knows nothing scores, by the shape of its outputs."""


class TrainingObjective(Objective, Protocol):
    """One that can be trained for."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """What is minimised, the mean over a batch."""


@dataclass(frozen=True, kw_only=True)
class CustomObjective:
    """An objective made of two functions of `(outputs, targets)`, both the mean over a batch."""

    loss: Callable[[Tensor, Tensor], Tensor]
    """Ranks candidates, and is what training minimises."""
    report: Callable[[Tensor, Tensor], Tensor | float]
    """For people: the higher, the better; it chooses the epoch."""
    ranks: str = "loss"
    reports: str = "score"

    def measure(self, model: nn.Module, batches: Iterable[Batch]) -> Score:
        sums, num = [0.0, 0.0], 0
        with evaluation_mode(model), torch.inference_mode():
            for images, targets in batches:
                outputs = run_model(model, images).float()
                targets = targets.to(outputs.device)
                for place, function in enumerate((self.loss, self.report)):
                    sums[place] += float(function(outputs, targets)) * len(images)
                num += len(images)
        return Score(loss=sums[0] / num, reported=sums[1] / num, num_images=num)

    def chance(self, model: nn.Module, batch: Batch) -> Score:
        """Of outputs that are zero."""
        with evaluation_mode(model), torch.inference_mode():
            outputs = torch.zeros_like(run_model(model, batch[0]).float())
        targets = batch[1].to(outputs.device)
        return Score(
            loss=float(self.loss(outputs, targets)), reported=float(self.report(outputs, targets)), num_images=0
        )


class Agreement:
    """With the outputs of the full network, which stand where labels do, of shape `(N, classes)`."""

    ranks, reports = "divergence", "agreement"

    def measure(self, model: nn.Module, batches: Iterable[Batch]) -> Score:
        divergence, agreeing, num = 0.0, 0, 0
        with evaluation_mode(model), torch.inference_mode():
            for images, wanted in batches:
                found = run_model(model, images).float().cpu()
                divergence += float(_divergence(wanted, found))
                agreeing += int((found.argmax(1) == wanted.argmax(1)).sum())
                num += len(images)
        return Score(loss=divergence / num, reported=agreeing / num, num_images=num)

    def chance(self, model: nn.Module, batch: Batch) -> Score:
        wanted = batch[1]
        loss = float(_divergence(wanted, torch.zeros_like(wanted))) / len(wanted)
        return Score(loss=loss, reported=1 / wanted.shape[1], num_images=0)


def _divergence(wanted: Tensor, found: Tensor) -> Tensor:
    """Kullback-Leibler, of the probabilities that the first outputs give from those of the second, summed."""
    return F.kl_div(found.log_softmax(1), wanted.log_softmax(1), reduction="sum", log_target=True)


class Classification:
    """One label per image."""

    ranks, reports = "cross-entropy", "top-1"

    def measure(self, model: nn.Module, batches: Iterable[Batch]) -> Score:
        found = evaluate_model(model, batches)
        return Score(loss=found.loss, reported=found.top1, num_images=found.num_images)

    def chance(self, model: nn.Module, batch: Batch) -> Score:
        with torch.no_grad():
            outputs = run_model(model, batch[0][:1]).shape[1]
        return Score(loss=math.log(outputs), reported=1 / outputs, num_images=0)
