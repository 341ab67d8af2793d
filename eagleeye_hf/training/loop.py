"""One network in training: its optimizer, schedule and average, and a step of it on any number of processes."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from itertools import chain, islice
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, broadcast
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from eagleeye_hf.data.batches import Portion, count_steps, own_randomness, seed_everything
from eagleeye_hf.data.pairs import TrainingImages
from eagleeye_hf.errors import EagleEyeError
from eagleeye_hf.evaluation.layers import LayerOutputs, matching_loss
from eagleeye_hf.evaluation.objective import TrainingObjective
from eagleeye_hf.networks.depthwise import Float32Depthwise
from eagleeye_hf.networks.description import describe_model
from eagleeye_hf.networks.running import Batch, channels_last, scale_images
from eagleeye_hf.processes import patient_group
from eagleeye_hf.telling import progress_bar
from eagleeye_hf.training.config import FinetuneConfig
from eagleeye_hf.training.loss import make_mixup, mix, objective_loss, training_loss

STATISTICS_BATCH = 128
"""Images of a batch from which statistics are recomputed."""


class Training:
    """A network and everything that changes while it learns."""

    def __init__(
        self,
        network: nn.Module,
        teacher: nn.Module | None,
        train: TrainingImages,
        config: FinetuneConfig,
        accelerator: Accelerator,
        num_workers: int = 0,
        objective: TrainingObjective | None = None,
        matched: Mapping[str, Tensor | None] | None = None,
        image_size: int | None = None,
    ) -> None:
        self.objective, self.matched, self.image_size = objective, matched, image_size
        self.config, self.accelerator, self.train, self.num_workers = config, accelerator, train, num_workers
        self.steps = train.count_steps(config.batch_size)
        self.layout = torch.channels_last if config.channels_last else torch.contiguous_format
        self.network = self._laid_out(network)
        self.ema = ModelEmaV3(self.network, config.ema, use_warmup=True) if config.ema else None
        if self.ema is not None:
            self.ema.to(accelerator.device)
        if config.checkpoint_activations:
            _checkpoint_activations(self.network)
        optimizer = create_optimizer_v2(
            self.network,
            config.optimizer,
            lr=config.lr,
            weight_decay=config.weight_decay,
            momentum=config.momentum,
        )
        self.schedule = create_scheduler_v2(
            optimizer,
            config.schedule,
            num_epochs=config.epochs,
            decay_epochs=config.decay_epochs,
            decay_rate=config.decay_rate,
            warmup_epochs=config.warmup * config.epochs,
            warmup_lr=config.lr * 1e-3,
            step_on_epochs=False,
            updates_per_epoch=self.steps,
        )[0]
        keep_buffers(accelerator)
        self.wrapped, self.optimizer = accelerator.prepare(self.network, optimizer)
        self.forward = torch.compile(self.wrapped) if config.compile else self.wrapped
        self.teacher = None
        if teacher is not None and config.distillation:
            self.teacher = self._laid_out(teacher).to(accelerator.device).eval()
        if matched is not None:
            assert self.teacher is not None
            self.layers = LayerOutputs(self.network, matched), LayerOutputs(self.teacher, matched)
        self.mixup = make_mixup(config, describe_model(network).num_classes or 0)
        self.epoch, self.step = 0, 0
        self.totals = torch.zeros(2, device=accelerator.device)
        """Summed loss and number of images of this epoch so far, on this process."""
        self.spare: Batch | None = None

    def _laid_out(self, network: nn.Module) -> nn.Module:
        """A copy in the memory format of the images."""
        network = copy.deepcopy(network)
        return channels_last(network) if self.config.channels_last else network

    def epoch_steps(self, title: str) -> Iterator[None]:
        """Train on the rest of this epoch; yields after each step."""
        self.wrapped.train()
        portion = Portion(
            batch_size=self.config.batch_size,
            process=self.accelerator.process_index,
            num_processes=self.accelerator.num_processes,
            micro_batches=self.config.accumulation,
            start=self.step,
        )
        device = self.accelerator.device
        batches = iter(self.train.epoch_batches(self.epoch, portion, self.num_workers, device))
        bar = progress_bar(
            total=self.steps,
            initial=self.step,
            desc=title,
            disable=not self.accelerator.is_main_process,
            delay=2,
            leave=False,
            mininterval=1,
        )
        with bar:
            while True:
                micro_batches = list(islice(batches, self.config.accumulation))
                total = self._count(micro_batches)
                if total is None:
                    break
                self._train_on(micro_batches, total)
                self.step += 1
                bar.update()
                yield

    def _count(self, micro_batches: Sequence[Batch]) -> Tensor | float | None:
        """Images of this step on all processes, 1 where none can be used; None when the epoch is over."""
        here = float(sum(len(labels) for _, labels in micro_batches))
        if self.accelerator.num_processes == 1:
            return max(here, 1.0) if micro_batches else None
        if self.train.exact_steps:
            if not micro_batches:
                return None
            count = torch.full((), here, device=self.accelerator.device)
            return self.accelerator.reduce(count).clamp(min=1)
        counts = torch.tensor([here, bool(micro_batches)])  # on the CPU: a GPU would have to be waited for
        torch.distributed.all_reduce(counts, group=patient_group())
        total, going_on = counts.tolist()
        return max(total, 1.0) if going_on else None  # streams may end at different times

    def _train_on(self, micro_batches: Sequence[Batch], total: Tensor | float) -> None:
        """One optimizer step, every image of all processes with the same weight."""
        self.schedule.step_update(self.epoch * self.steps + min(self.step, self.steps - 1))
        filled = [batch for batch in micro_batches if len(batch[1])]
        weight, idle = self.accelerator.num_processes / total, not filled
        if not idle:
            self.spare = filled[-1]
        elif self.accelerator.num_processes == 1:
            return
        else:  # nothing left here, but the others wait for this process's gradients
            weight, filled = 0.0 * weight, [self.spare or self._blank()]
        for number, (images, labels) in enumerate(filled):
            last = number == len(filled) - 1
            with nullcontext() if last else self.accelerator.no_sync(self.wrapped):
                loss = self._loss(images, labels)
                self.accelerator.backward(loss * (weight * len(labels)))
            if not idle:
                self.totals += torch.stack([loss.detach() * len(labels), torch.full_like(loss, len(labels))])
        self.accelerator.clip_grad_norm_(self.wrapped.parameters(), self.config.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.ema is not None:
            self.ema.update(self.network, self.epoch * self.steps + self.step + 1)

    def _loss(self, images: Tensor, labels: Tensor) -> Tensor:
        device = self.accelerator.device
        images = images.to(device, memory_format=self.layout, non_blocking=True)
        target = labels.to(device, non_blocking=True)
        if self.mixup is not None:
            images, target = mix(self.mixup, images, target)
        teacher_logits = None
        if self.teacher is not None:
            with torch.no_grad(), self.accelerator.autocast():
                teacher_logits = self.teacher(images)
        with Float32Depthwise():
            outputs = self.forward(scale_images(images, self.image_size))
        if self.matched is not None and teacher_logits is not None:
            ours, theirs = self.layers
            return matching_loss(ours.taken, theirs.taken, self.matched, outputs, teacher_logits)
        if self.objective is not None:
            return objective_loss(outputs, target, teacher_logits, self.config, self.objective)
        return training_loss(outputs, target, teacher_logits, self.config)

    def calibration_batches(self, calibration: TrainingImages, images: int = 0) -> Iterator[Tensor]:
        """This process's part of batches preprocessed as training's, the same for any number of processes but on a
        stream: calibration images, then training's up to `images`."""
        which, parts, device = self.accelerator.process_index, self.accelerator.num_processes, self.accelerator.device
        portion = Portion(batch_size=STATISTICS_BATCH, process=which, num_processes=parts, whole_steps=True)
        batches = calibration.seen_as(self.train).epoch_batches(0, portion, self.num_workers, device)
        missing = count_steps(max(0, images - calibration.count()), STATISTICS_BATCH)
        if missing > which:
            more = self.train.epoch_batches(0, portion, self.num_workers, device)
            batches = chain(batches, islice(more, len(range(which, missing, parts))))
        for number, (pixels, labels) in enumerate(batches):
            if len(labels) and self.mixup is not None:
                with own_randomness():
                    seed_everything(self.train.seed ^ (which + number * parts))
                    pixels = mix(self.mixup, pixels, labels.to(device))[0]
            if len(labels):
                yield scale_images(pixels, self.image_size)

    def _blank(self) -> Batch:
        size = describe_model(self.network).input_size
        return torch.zeros(2, *size), torch.zeros(2, dtype=torch.long)

    def finish_epoch(self) -> tuple[float, int]:
        """Mean loss and number of images of this epoch, all processes together; moves on to the next.

        Raises:
            EagleEyeError: the loss is not finite.
        """
        networks = [self.network, *([self.ema.module] if self.ema is not None else [])]
        for buffer in (buffer for network in networks for buffer in network.buffers()):
            broadcast(buffer)  # each process has its own
        loss, images = self.accelerator.reduce(self.totals).tolist()
        mean = loss / max(images, 1)
        self._check(mean)
        self.totals.zero_()
        self.epoch, self.step = self.epoch + 1, 0
        return mean, int(images)

    def _check(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise EagleEyeError(
                f"the training loss became {loss} in epoch {self.epoch + 1}; lower `lr={self.config.lr}`"
            )

    def state_dict(self) -> dict[str, Any]:
        """What accelerate does not save.

        Raises:
            EagleEyeError: the loss is not finite, so there is nothing worth saving.
        """
        totals = self.accelerator.reduce(self.totals)  # after a restart the first process carries them
        self._check(float(totals[0]))
        ema = self.ema.module.state_dict() if self.ema is not None else None
        return {"epoch": self.epoch, "step": self.step, "totals": totals, "ema": ema}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch, self.step = state["epoch"], state["step"]
        if self.accelerator.is_main_process:
            self.totals.copy_(state["totals"])
        if self.ema is not None:
            self.ema.module.load_state_dict(state["ema"])


def keep_buffers(accelerator: Accelerator) -> None:
    """No broadcast of statistics before each step: each process has its own, and those of the result are recomputed."""
    handler = accelerator.ddp_handler or DistributedDataParallelKwargs()
    handler.broadcast_buffers = False
    accelerator.ddp_handler = handler


def _checkpoint_activations(network: nn.Module) -> None:
    try:
        network.set_grad_checkpointing(True)  # type: ignore[operator]
    except (AttributeError, AssertionError) as error:
        raise EagleEyeError(
            f"`checkpoint_activations`: {type(network).__name__} can't recompute activations; turn it off"
        ) from error
