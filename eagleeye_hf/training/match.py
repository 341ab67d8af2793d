"""A pruned network's layers trained to give what the full network's give, without labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from eagleeye_hf.channels.graph import ChannelGraph
from eagleeye_hf.data.batches import Portion, count_steps
from eagleeye_hf.data.pairs import TrainingImages
from eagleeye_hf.evaluation.layers import matched_layers
from eagleeye_hf.evaluation.objective import TrainingObjective
from eagleeye_hf.networks.running import Batch
from eagleeye_hf.pruning.config import MatchConfig
from eagleeye_hf.training.config import FinetuneConfig
from eagleeye_hf.training.finetune import EpochRecord, finetune_model

LEAST, MOST = 200, 600
"""Steps where they are left open: those of one epoch, within these bounds."""


def match_teacher(
    thin: nn.Module,
    full: nn.Module,
    graph: ChannelGraph,
    keep: Mapping[str, Any],
    images: TrainingImages,
    config: MatchConfig | None = None,
    *,
    removed_blocks: Collection[str] = (),
    image_size: int | None = None,
    holdout: TrainingImages | None = None,
    calibration: TrainingImages | None = None,
    objective: TrainingObjective | None = None,
    accelerator: Accelerator | None = None,
    checkpoint: Path | None = None,
    identity: Mapping[str, object] | None = None,
    num_workers: int = 0,
    on_epoch: Callable[[EpochRecord], None] | None = None,
) -> nn.Module:
    """Train every layer of a pruned network to give what the full network's kept channels give there, and its outputs.

    The error of each BatchNorm layer's output is divided by that output's variance in the full network, so that
    layers count alike. Labels of `images` are not read. A new network is returned, on the CPU, in eval mode.

    Args:
        thin: `full` without the channels that `keep` leaves out, its statistics recomputed.
        graph: of `full`.
        keep: kept channels, as `choose_channels` gives them.
        images: training images, at the size that the full network takes.
        removed_blocks: those that the pruned network lacks.
        image_size: as in `finetune_model`: what the full network sees in more pixels teaches the pruned one, too. Where
            a layer's map is smaller there, the full network's is averaged over the same places.
        holdout: as in `finetune_model`: what scores worse than the network it started from is not returned.
        calibration, objective, accelerator, checkpoint, identity, num_workers, on_epoch: as in `finetune_model`.
    Raises:
        EagleEyeError: as `finetune_model`.
    """
    config = config or MatchConfig()
    batch_size, epochs, steps = match_length(config, images.count(accelerator))
    training = FinetuneConfig(
        epochs=epochs, batch_size=batch_size, lr=config.match_lr, distillation=1.0, temperature=1.0
    )
    return finetune_model(
        thin,
        FewSteps(images, steps),
        training,
        teacher=full,
        matched=matched_layers(full, graph, keep, removed_blocks),
        image_size=image_size,
        holdout=holdout,
        calibration=calibration,
        objective=objective,
        accelerator=accelerator,
        checkpoint=checkpoint,
        identity=identity,
        num_workers=num_workers,
        on_epoch=on_epoch,
    )


def match_length(config: MatchConfig, num_images: int) -> tuple[int, int, int]:
    """Images of a step, epochs, and steps of each."""
    batch_size = max(1, min(config.match_batch_size, num_images))
    whole = count_steps(num_images, batch_size)
    wanted = min(MOST, max(LEAST, whole)) if config.match_steps is None else config.match_steps
    epochs = math.ceil(wanted / max(1, whole))
    return batch_size, epochs, math.ceil(wanted / epochs) if epochs else 0


class FewSteps:
    """The first steps of each epoch of some images."""

    def __init__(self, images: TrainingImages, steps: int) -> None:
        self.images, self.steps = images, steps
        self.name, self.seed = images.name, images.seed

    @property
    def exact_steps(self) -> bool:
        return self.images.exact_steps

    def count(self, accelerator: Accelerator | None = None) -> int:
        return self.images.count(accelerator)

    def count_steps(self, batch_size: int) -> int:
        return min(self.steps, self.images.count_steps(batch_size))

    def cached_batches(
        self,
        batch_size: int = 128,
        device: torch.device | None = None,
        accelerator: Accelerator | None = None,
        num_workers: int = 0,
    ) -> Sequence[Batch]:
        return self.images.cached_batches(batch_size, device, accelerator, num_workers)

    def epoch_batches(
        self, epoch: int, portion: Portion, num_workers: int = 0, device: torch.device | None = None
    ) -> Iterator[Batch]:
        left = max(0, self.steps - portion.start) * portion.micro_batches
        return islice(self.images.epoch_batches(epoch, portion, num_workers, device), left)

    def seen_as(self, other: TrainingImages) -> TrainingImages:
        return self.images.seen_as(other)
