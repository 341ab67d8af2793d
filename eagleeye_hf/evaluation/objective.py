"""What ranks candidates, and what is reported beside it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import nn

from eagleeye_hf.evaluation.metrics import evaluate_model
from eagleeye_hf.networks.running import Batch, run_model


@dataclass(frozen=True, kw_only=True)
class Score:
    """What a network reaches on some images."""

    loss: float
    """Ranks: the lower, the better."""
    reported: float
    """For people, the higher, the better; the objective names it."""
    num_images: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Score:
        return Score(**data)


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
