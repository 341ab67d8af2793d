"""The settings of fine-tuning; the flags of recipes and commands come from here too."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from timm.optim import list_optimizers

from eagleeye_hf.errors import EagleEyeError

SCHEDULES = ("cosine", "step")


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """The paper's recipe (section 4.1), to be scaled to the dataset."""

    epochs: int = _option(120, "epochs of fine-tuning")
    batch_size: int = _option(512, "images per optimizer step, all processes and micro-batches together")
    accumulation: int = _option(1, "micro-batches into which each process divides its part of a step, to fit memory")
    num_workers: int = _option(0, "processes that decode training images, per training process")
    optimizer: str = _option("sgd", "name in timm's factory: sgd (Nesterov), momentum (plain), adamw, lamb...")
    lr: float = _option(0.01, "highest learning rate, for `batch_size` images a step; nothing scales it")
    momentum: float = _option(0.9, "momentum of SGD and its kin")
    weight_decay: float = _option(1e-4, "weight decay, but not of biases and BatchNorm")
    schedule: str = _option("cosine", f"how the learning rate falls: {', '.join(SCHEDULES)}")
    decay_epochs: float = _option(30.0, "epochs between the steps of `schedule=step`")
    decay_rate: float = _option(0.1, "factor of a step of `schedule=step`")
    warmup: float = _option(0.02, "share of all steps in which the learning rate rises")
    label_smoothing: float = _option(0.0, "probability spread over all classes")
    mixup: float = _option(0.0, "alpha of mixup; 0 turns it off")
    cutmix: float = _option(0.0, "alpha of cutmix; 0 turns it off")
    distillation: float = _option(0.5, "weight of the full network's outputs in the loss; 0 turns it off")
    temperature: float = _option(2.0, "softens the full network's outputs")
    max_grad_norm: float = _option(5.0, "longer gradients are cut to this length")
    ema: float = _option(0.0, "decay of an exponential moving average of the weights, as 0.9999; 0 turns it off")
    channels_last: bool = _option(True, "keep channels innermost in memory, as convolutions on most devices want them")
    checkpoint_activations: bool = _option(False, "recompute activations in the backward pass, to save memory")
    compile: bool = _option(False, "compile the network with torch.compile")
    save_steps: int = _option(500, "steps between checkpoints inside an epoch; there is one after every epoch too")
    tracker: str | None = _option(None, "tracker of accelerate: tensorboard, trackio, wandb...")

    def __post_init__(self) -> None:
        for name, valid, meaning in (
            ("epochs", self.epochs >= 0, "at least 0"),
            ("batch_size", self.batch_size >= 1, "at least 1"),
            ("accumulation", self.accumulation >= 1, "at least 1"),
            ("lr", self.lr > 0, "above 0"),
            ("schedule", self.schedule in SCHEDULES, f"one of {', '.join(SCHEDULES)}"),
            ("warmup", 0 <= self.warmup < 1, "in [0, 1)"),
            ("label_smoothing", 0 <= self.label_smoothing < 1, "in [0, 1)"),
            ("mixup", self.mixup >= 0, "at least 0"),
            ("cutmix", self.cutmix >= 0, "at least 0"),
            ("distillation", 0 <= self.distillation <= 1, "in [0, 1]"),
            ("temperature", self.temperature > 0, "above 0"),
            ("max_grad_norm", self.max_grad_norm > 0, "above 0"),
            ("ema", 0 <= self.ema < 1, "in [0, 1)"),
            ("save_steps", self.save_steps >= 1, "at least 1"),
        ):
            if not valid:
                raise EagleEyeError(f"`{name}` is {meaning}; got {getattr(self, name)}")
        if self.optimizer not in list_optimizers():
            raise EagleEyeError(
                f"`optimizer={self.optimizer}` is not known to timm; it has {', '.join(list_optimizers())}"
            )
