"""The score of a candidate: thin, recompute BatchNorm, evaluate on the holdout images."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import nn

from eagleeye_hf.channels.graph import ChannelGraph
from eagleeye_hf.channels.thin import named_tensors
from eagleeye_hf.evaluation.batchnorm import Batch, batch_norms, recalibrate_bn
from eagleeye_hf.evaluation.metrics import Metrics, evaluate_model
from eagleeye_hf.pruning.importance import choose_channels
from eagleeye_hf.pruning.surgery import slice_model


class AdaptiveBNScore:
    """Scores widths by adaptive BatchNorm evaluation (paper, section 3.3).

    Args:
        calibration: batches of training images, used only to recompute the statistics.
        holdout: batches of other training images, used only to score.
        momentum: as in `recalibrate_bn`.
    """

    def __init__(
        self,
        model: nn.Module,
        graph: ChannelGraph,
        calibration: Sequence[Batch],
        holdout: Sequence[Batch],
        *,
        criterion: str = "l1",
        momentum: float | None = None,
    ) -> None:
        batch_norms(model)  # refuses a network without any
        self.model, self.graph = model, graph
        self.calibration, self.holdout = calibration, holdout
        self.criterion, self.momentum = criterion, momentum

    def build(self, widths: Sequence[int]) -> nn.Module:
        """The thinned model with the full model's statistics."""
        return slice_model(self.model, self.graph, choose_channels(self.model, self.graph, widths, self.criterion))

    def __call__(self, widths: Sequence[int]) -> Metrics:
        return evaluate_model(recalibrate_bn(self.build(widths), self.calibration, self.momentum), self.holdout)

    def fingerprint(self) -> dict[str, object]:
        """Everything here that determines a score."""
        weights, images = hashlib.sha256(), hashlib.sha256()
        for name, tensor in named_tensors(self.model):
            weights.update(name.encode() + tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
        for batch_images, labels in (*self.calibration, *self.holdout):
            images.update(batch_images.contiguous().numpy().tobytes() + labels.numpy().tobytes())
        return {
            "weights": weights.hexdigest()[:16],
            "images": images.hexdigest()[:16],
            "criterion": self.criterion,
            "momentum": self.momentum,
        }
