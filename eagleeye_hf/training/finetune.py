"""The fine-tuning loop: SGD with a cosine schedule through accelerate, on one or many devices."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm.auto import tqdm

from eagleeye_hf.data.splits import ImageSet
from eagleeye_hf.errors import EagleEyeError
from eagleeye_hf.evaluation.batchnorm import Batch


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """The paper's recipe (section 4.1), to be scaled to the dataset."""

    epochs: int = 120
    batch_size: int = 512
    """Images per step, all processes together."""
    num_workers: int = 0
    """Processes that decode images, per training process."""
    lr: float = 0.01
    """Highest learning rate; it falls to zero along a cosine after a linear warm-up."""
    momentum: float = 0.9
    weight_decay: float = 1e-4
    warmup: float = 0.02
    """Share of all steps in which the learning rate rises."""
    label_smoothing: float = 0.0
    distillation: float = 0.5
    """Weight of the full network's outputs in the loss, where a teacher is given."""
    temperature: float = 2.0
    max_grad_norm: float = 5.0

    def __post_init__(self) -> None:
        for name, valid, meaning in (
            ("epochs", self.epochs >= 0, "at least 0"),
            ("batch_size", self.batch_size >= 1, "at least 1"),
            ("lr", self.lr > 0, "above 0"),
            ("distillation", 0 <= self.distillation <= 1, "in [0, 1]"),
        ):
            if not valid:
                raise EagleEyeError(f"`{name}` is {meaning}; got {getattr(self, name)}")


def finetune_model(
    model: nn.Module,
    train: ImageSet,
    config: FinetuneConfig,
    *,
    teacher: nn.Module | None = None,
    accelerator: Accelerator | None = None,
    checkpoint: Path | None = None,
) -> nn.Module:
    """Train a pruned network; returns it on the CPU, in eval mode.

    Args:
        train: training images; under several processes accelerate shares the batches out.
        teacher: the full network, whose outputs the pruned one learns beside the labels (Hinton et al. 2015).
        checkpoint: folder for the state after each epoch; a run started again there goes on after the last whole one.
            It stays, so that nothing is lost before the result is saved; the caller removes it.
    Raises:
        EagleEyeError: there are fewer images than `batch_size`, or the loss is not finite.
    """
    accelerator = accelerator or Accelerator()
    if not config.epochs:
        return model.eval()
    optimizer = torch.optim.SGD(
        [
            {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": config.weight_decay},
            {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=config.lr,
        momentum=config.momentum,
        nesterov=True,
    )
    trained, optimizer = accelerator.prepare(model, optimizer)
    if teacher is not None:
        teacher = teacher.to(accelerator.device).eval()
    steps = train.count() // config.batch_size
    if not steps:
        raise EagleEyeError(f"`batch_size={config.batch_size}` exceeds the {train.count()} training images; lower it")
    state = _Checkpoint(checkpoint, asdict(config), accelerator)
    first = state.load()
    for epoch in range(first, config.epochs):
        size = max(1, config.batch_size // accelerator.num_processes)
        batches = accelerator.prepare(train.loader(size, epoch, config.num_workers))
        loss = _run_epoch(trained, teacher, optimizer, batches, config, accelerator, epoch, steps)
        if not math.isfinite(loss):
            raise EagleEyeError(f"the training loss became {loss} in epoch {epoch + 1}; lower `lr={config.lr}`")
        state.save(epoch + 1)
    unwrapped: nn.Module = accelerator.unwrap_model(trained, keep_fp32_wrapper=False)
    accelerator.free_memory()
    return unwrapped.cpu().eval()


def _run_epoch(
    model: nn.Module,
    teacher: nn.Module | None,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[Batch],
    config: FinetuneConfig,
    accelerator: Accelerator,
    epoch: int,
    steps: int,
) -> float:
    model.train()
    total, number = torch.zeros((), device=accelerator.device), 0
    title = f"epoch {epoch + 1}/{config.epochs}"
    for images, labels in tqdm(
        batches, title, steps, disable=not accelerator.is_main_process, delay=2, leave=False, mininterval=1
    ):
        if number == steps:
            break
        lr = config.lr * _schedule((epoch * steps + number) / (config.epochs * steps), config.warmup)
        for group in optimizer.param_groups:
            group["lr"] = lr
        logits = model(images)
        loss = F.cross_entropy(logits, labels, label_smoothing=config.label_smoothing)
        if teacher is not None and config.distillation:
            with torch.no_grad(), accelerator.autocast():
                target = teacher(images)
            loss = (1 - config.distillation) * loss + config.distillation * distillation_loss(
                logits, target, config.temperature
            )
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        total += loss.detach()
        number += 1
    return float(total) / max(number, 1)


def distillation_loss(logits: Tensor, target: Tensor, temperature: float) -> Tensor:
    """Cross-entropy to the teacher's softened outputs, scaled as gradients need (Hinton et al. 2015, section 2)."""
    log_p = F.log_softmax(logits.float() / temperature, dim=1)
    q = F.softmax(target.float() / temperature, dim=1)
    return F.kl_div(log_p, q, reduction="batchmean") * temperature**2


def _schedule(progress: float, warmup: float) -> float:
    if progress < warmup:
        return (progress + 1e-3) / (warmup + 1e-3)
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


class _Checkpoint:
    """The state after the last whole epoch, replaced by renaming so that it is never half-written."""

    def __init__(self, folder: Path | None, config: dict[str, object], accelerator: Accelerator) -> None:
        self.folder, self.config, self.accelerator = folder, config, accelerator

    def load(self) -> int:
        if self.folder is None or not (self.folder / "epoch.json").exists():
            return 0
        saved = json.loads((self.folder / "epoch.json").read_text())
        if saved["config"] != self.config:
            raise EagleEyeError(
                f"{self.folder} holds training with other settings ({saved['config']}); "
                "run with those to go on, or choose another output folder"
            )
        self.accelerator.load_state(str(self.folder))
        return saved["epoch"]

    def save(self, epoch: int) -> None:
        if self.folder is None:
            return
        fresh = self.folder.with_name(self.folder.name + ".new")
        if self.accelerator.is_main_process:
            shutil.rmtree(fresh, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(fresh))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            (fresh / "epoch.json").write_text(json.dumps({"epoch": epoch, "config": self.config}))
            shutil.rmtree(self.folder, ignore_errors=True)
            os.replace(fresh, self.folder)
        self.accelerator.wait_for_everyone()
