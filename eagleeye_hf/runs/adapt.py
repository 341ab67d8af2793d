"""The full network made fit for a dataset, before it is pruned: its outputs, its weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from eagleeye_hf.data.classes import align, find_outputs, find_outputs_of
from eagleeye_hf.data.splits import Splits
from eagleeye_hf.networks.description import describe_model
from eagleeye_hf.networks.head import keep_outputs, replace_head
from eagleeye_hf.processes import is_main
from eagleeye_hf.runs.config import RunConfig
from eagleeye_hf.runs.folder import open_run
from eagleeye_hf.training.config import epochs_for
from eagleeye_hf.training.finetune import finetune_model

BASE = "training-base"
"""Checkpoints of this training, in the run's folder."""
KEPT, NEW = "kept", "new"


def adapt_head(model: nn.Module, names: Sequence[str] | None) -> tuple[nn.Module, str]:
    """Give a network an output per class, in place, where it has another number of them.

    Args:
        names: the dataset's classes; None where they are not known.
    Returns:
        The network, and what became of its head: `kept`, where the classes are among its own or those of ImageNet;
        `new`, where it has to be trained; an empty text where it is as it was.
    Raises:
        EagleEyeError: the head can't be replaced.
    """
    if names is None or describe_model(model).num_classes in (None, len(names)):
        return model, ""
    outputs = find_outputs(model, None)
    places = align(names, outputs, whole=False) if outputs.words else find_outputs_of(model, names)
    if places is not None:
        return keep_outputs(model, places, names), KEPT
    return replace_head(model, names), NEW


def settle_adaptation(config: RunConfig, head: str, num_images: int) -> RunConfig:
    """The config with the epochs of adaptation that a new head needs, where they are left open, and their rate."""
    adapt = config.adapt
    if adapt.adapt_epochs is None:
        least = {NEW: (5, 300, 40), KEPT: (2, 200, 20)}.get(head)
        epochs = epochs_for(num_images, config.finetune.batch_size, *least) if least else 0
        adapt = replace(adapt, adapt_epochs=epochs)
    return replace(config, adapt=replace(adapt, adapt_lr=adapt.adapt_lr or config.finetune.lr))


def adapt_model(model: nn.Module, data: Splits, config: RunConfig) -> nn.Module:
    """Train the full network on the dataset for `adapt_epochs`; the best epoch on the holdout images stays.

    A run that was killed goes on when started again with the same config.
    """
    run = open_run(config.output, "compress")
    if is_main():
        run.claim(BASE)
    lr = config.adapt.adapt_lr or config.finetune.lr
    training = replace(config.finetune, epochs=config.adapt.adapt_epochs or 0, lr=lr)
    return finetune_model(
        model,
        data.train,
        training,
        holdout=data.holdout,
        checkpoint=run.path / BASE,
        identity=config.images | {"model": config.network.model, "weights": config.network.weights},
        num_workers=config.data.num_workers,
    )
