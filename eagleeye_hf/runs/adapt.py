"""Training of the full network before it is pruned."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from eagleeye_hf.data.splits import Splits
from eagleeye_hf.processes import is_main
from eagleeye_hf.runs.config import RunConfig
from eagleeye_hf.runs.folder import open_run
from eagleeye_hf.training.finetune import finetune_model

BASE = "training-base"
"""Checkpoints of this training, in the run's folder."""


def adapt_model(model: nn.Module, data: Splits, config: RunConfig) -> nn.Module:
    """Train the full network on the dataset for `adapt_epochs`; the best epoch on the holdout images stays.

    A run that was killed goes on when started again with the same config.
    """
    run = open_run(config.output, "compress")
    if is_main():
        run.claim(BASE)
    training = replace(config.finetune, epochs=config.adapt.adapt_epochs, lr=config.adapt.adapt_lr)
    return finetune_model(
        model,
        data.train,
        training,
        holdout=data.holdout,
        checkpoint=run.path / BASE,
        num_workers=config.data.num_workers,
    )
