"""The settings of fine-tuning."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Annotated, Literal

from eagleeye_hf.configs import Within, check_fields
from eagleeye_hf.errors import EagleEyeError

FAMILIAR = ("sgd", "momentum", "adamw", "adam", "lamb")
"""Optimizers that timm has, known without asking it, for it takes seconds to import."""

MANY_IMAGES, SMALLEST_STEP = 100_000, 8
USUAL_STEP, USUAL_LR = 64, 0.02
"""Images of a step up to which `SizedFinetuneConfig` takes this learning rate; for larger ones in proportion."""

Count = Annotated[int, Within("[1, inf)")]
Positive = Annotated[float, Within("(0, inf)")]
NotNegative = Annotated[float, Within("[0, inf)")]
BelowOne = Annotated[float, Within("[0, 1)")]


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How training goes, but for its length and the size of its steps."""

    accumulation: Count = 1
    """Micro-batches into which each process divides its part of a step, to fit memory."""
    optimizer: str = "sgd"
    """Name in timm's factory: sgd (Nesterov), momentum (plain), adamw, lamb..."""
    momentum: BelowOne = 0.9
    """Momentum of SGD and its kin."""
    weight_decay: NotNegative = 1e-4
    """Weight decay, but not of biases and BatchNorm."""
    schedule: Literal["cosine", "step"] = "cosine"
    """How the learning rate falls."""
    decay_epochs: Positive = 30.0
    """Epochs between the steps of `schedule=step`."""
    decay_rate: Annotated[float, Within("(0, 1]")] = 0.1
    """Factor of a step of `schedule=step`."""
    warmup: BelowOne = 0.02
    """Part of all steps in which the learning rate rises."""
    label_smoothing: BelowOne = 0.0
    """Probability spread over all classes."""
    mixup: NotNegative = 0.0
    """Alpha of mixup; 0 turns it off."""
    cutmix: NotNegative = 0.0
    """Alpha of cutmix; 0 turns it off."""
    distillation: Annotated[float, Within("[0, 1]")] = 0.5
    """Weight of the full network's outputs in the loss; 0 turns it off."""
    temperature: Positive = 2.0
    """Softens the full network's outputs."""
    max_grad_norm: Positive = 5.0
    """Longer gradients are cut to this length."""
    ema: BelowOne = 0.0
    """Decay of an exponential moving average of the weights, as 0.9999; 0 turns it off."""
    channels_last: bool = True
    """Keep channels innermost in memory, as convolutions on most devices want them."""
    checkpoint_activations: bool = False
    """Recompute activations in the backward pass, to save memory."""
    compile: bool = False
    """Compile the network with torch.compile."""
    save_steps: Count = 500
    """Steps between checkpoints inside an epoch; there is one after every epoch too."""
    tracker: str | None = None
    """Tracker of accelerate: tensorboard, trackio, wandb..."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.optimizer not in FAMILIAR:
            from timm.optim import list_optimizers

            if self.optimizer not in list_optimizers():
                raise EagleEyeError(
                    f"`optimizer={self.optimizer}` is not known to timm; it has {', '.join(list_optimizers())}"
                )
        if self.tracker is not None:
            from accelerate.utils import LoggerType

            names = [str(kind) for kind in LoggerType if str(kind) != "all"]
            if self.tracker not in names:
                raise EagleEyeError(f"`tracker={self.tracker}` is unknown; choose one of {', '.join(names)}")


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(TrainingConfig):
    """The paper's recipe (section 4.1), to be scaled to the dataset."""

    epochs: Annotated[int, Within("[0, inf)")] = 120
    """Epochs of fine-tuning."""
    batch_size: Count = 512
    """Images per optimizer step, all processes and micro-batches together."""
    lr: Positive = 0.01
    """Highest learning rate, for `batch_size` images a step; nothing scales it."""


@dataclass(frozen=True, kw_only=True)
class SizedFinetuneConfig(TrainingConfig):
    """Fine-tuning whose length and steps go by the number of training images."""

    epochs: Annotated[int, Within("[0, inf)")] | None = None
    """Epochs of fine-tuning; None: 30, or as many as make 600 steps where that is more, up to 120."""
    batch_size: Count | None = None
    """Images per optimizer step, all processes and micro-batches together; None: 64, 256 from 100,000 training images
    on; down to 8, where an epoch would have less than eight steps."""
    lr: Positive | None = None
    """Highest learning rate; None: 0.02 for steps of up to 64 images, in proportion for larger ones."""

    def settle(self, num_images: int) -> FinetuneConfig:
        """The same for a number of training images."""
        batch_size = self.batch_size
        if batch_size is None:
            batch_size = min(256 if num_images >= MANY_IMAGES else USUAL_STEP, max(SMALLEST_STEP, num_images // 8))
            batch_size = max(1, min(batch_size, num_images))
        return FinetuneConfig(
            **{field.name: getattr(self, field.name) for field in fields(TrainingConfig)},
            epochs=epochs_for(num_images, batch_size, 30, 600, 120) if self.epochs is None else self.epochs,
            batch_size=batch_size,
            lr=USUAL_LR * max(1.0, batch_size / USUAL_STEP) if self.lr is None else self.lr,
        )


def epochs_for(num_images: int, batch_size: int, least: int, steps: int, most: int) -> int:
    """At least so many epochs, more where they have fewer steps together, up to a limit."""
    return min(most, max(least, math.ceil(steps * batch_size / max(num_images, 1))))
