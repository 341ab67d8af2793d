"""Fine-tuning a pruned network, chosen by the holdout images, going on after a kill."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm import tqdm

from eagleeye_hf.data.pairs import TrainingImages
from eagleeye_hf.errors import EagleEyeError
from eagleeye_hf.evaluation.objective import TrainingObjective
from eagleeye_hf.networks.running import half_of, in_float32
from eagleeye_hf.telling import say, warn
from eagleeye_hf.training.checks import check_accelerator, check_teacher
from eagleeye_hf.training.config import FinetuneConfig
from eagleeye_hf.training.loop import Training
from eagleeye_hf.training.selection import Selection
from eagleeye_hf.training.state import Checkpoints
from eagleeye_hf.training.tracking import start_tracker, stop_tracker

FEW = 16
"""Images in each part of a step, below which a warning is given."""


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """One point of the training curve."""

    epoch: int
    """Epochs that are done, this one included."""
    loss: float
    """Mean training loss."""
    lr: float
    """Learning rate of the last step."""
    images: int
    """Images seen in this epoch, all processes together."""
    images_per_second: float
    top1: float | None = None
    """On the holdout images, where they are given; what the objective reports, where one is."""
    ema_top1: float | None = None
    """The same of the averaged weights."""


def finetune_model(
    model: nn.Module,
    train: TrainingImages,
    config: FinetuneConfig,
    *,
    teacher: nn.Module | None = None,
    holdout: TrainingImages | None = None,
    calibration: TrainingImages | None = None,
    objective: TrainingObjective | None = None,
    matched: Mapping[str, Tensor | None] | None = None,
    image_size: int | None = None,
    accelerator: Accelerator | None = None,
    checkpoint: Path | None = None,
    identity: Mapping[str, object] | None = None,
    num_workers: int = 0,
    on_epoch: Callable[[EpochRecord], None] | None = None,
) -> nn.Module:
    """Train a pruned network; returns a new one on the CPU, in eval mode.

    A network in half precision is trained, and returned, in float32; `accelerator` has half precision for the
    computation.

    Args:
        train: training images; every process sees its part of each step, and all together see each image once an epoch.
        teacher: the full network, whose outputs the pruned one learns beside the labels (Hinton et al. 2015).
        holdout: images that choose the best epoch, and between the weights and their average. The network as it was
            given takes part, so that what is returned is no worse there. The last epoch's weights (averaged, with
            `ema`) where not given.
        calibration: images that recompute the BatchNorm statistics of what is scored, and of what is returned, there
            filled up to 8,192 with training images where those have random access; seen as in training, cropped and
            mixed, for the weights have learned under those statistics.
        objective: what is trained for, and what chooses the epoch, where that is not the label of an image; `teacher`
            then adds the squared error to its outputs. Images with targets of any shape: `PairSet`.
        matched: layers, by name, that learn to give what the teacher's give, instead of the labels; and which of the
            teacher's channels each has, None for all. `match_teacher` finds them.
        image_size: side of the images that the network takes, in pixels, where `train` and `calibration` give larger
            ones: `teacher` sees those, and the network the same scaled down. `holdout` gives them at its own size.
        accelerator: its mixed precision is used, on one device or many that each hold the whole network.
        checkpoint: folder for the state of training; a run started again there goes on where the last whole checkpoint
            is, inside an epoch too. It stays, so that nothing is lost before the result is saved; the caller removes
            it.
        identity: what else must be the same where training goes on, as the names of the model and of the images: texts,
            numbers and lists of them.
        num_workers: processes that decode images, per process.
        on_epoch: told about each epoch, but not about the start; after a restart about the earlier ones again.
    Raises:
        EagleEyeError: there are fewer images than `batch_size`, the teacher has other outputs or sees images otherwise,
            accelerate is configured in a way that would change the result, the folder holds another training or can't
            be written, or the loss is not finite.
    """
    accelerator = accelerator or Accelerator()
    if not config.epochs:
        return model.eval()
    if train.count(accelerator) < config.batch_size:
        raise EagleEyeError(f"`batch_size={config.batch_size}` exceeds the {train.count()} training images; lower it")
    parts = accelerator.num_processes * config.accumulation
    if parts > 1 and config.batch_size < 2 * parts:
        raise EagleEyeError(
            f"`batch_size={config.batch_size}` leaves less than two images to each part of a step, by which BatchNorm "
            f"can't train; give at least {2 * parts} (processes: {accelerator.num_processes}, "
            f"`accumulation={config.accumulation}`), or use fewer"
        )
    if objective is not None and (config.mixup or config.cutmix or config.label_smoothing):
        raise EagleEyeError("`objective`: mixup, cutmix and label smoothing are of class labels; turn them off")
    check_accelerator(accelerator, model)
    if teacher is not None:
        check_teacher(teacher, model)
        teacher = in_float32(teacher)
    half, model = half_of(model), in_float32(model)
    checkpoints = Checkpoints(checkpoint, config, accelerator, identity)
    checkpoints.prepare(sum(tensor.nbytes for tensor in model.state_dict().values()))
    training = Training(model, teacher, train, config, accelerator, num_workers, objective, matched, image_size)
    selection = Selection(
        model,
        holdout,
        calibration if calibration and calibration.count() else None,
        accelerator,
        objective,
        num_workers,
    )
    tell = _Teller(config, accelerator, on_epoch, checkpoint, objective.reports if objective else "top-1")
    state = checkpoints.load()
    if state is not None:
        training.load_state_dict(state["training"])
        selection.best = state["best"]
        tell.again([EpochRecord(**record) for record in state["records"]])
    else:
        selection.start(training)
    tell.start(training, half)

    def save() -> None:
        records = [asdict(record) for record in tell.records]
        done = training.epoch * training.steps + training.step
        checkpoints.save(done, {"training": training.state_dict(), "best": selection.best, "records": records})

    while training.epoch < config.epochs:
        started, first = time.perf_counter(), training.step
        for _ in training.epoch_steps(f"epoch {training.epoch + 1}/{config.epochs}"):
            if checkpoint is not None and training.step % config.save_steps == 0 and training.step < training.steps:
                save()
        fraction = 1 - first / max(training.step, 1)
        loss, images = training.finish_epoch()
        seconds = time.perf_counter() - started
        record = EpochRecord(
            epoch=training.epoch,
            loss=loss,
            lr=training.optimizer.param_groups[0]["lr"],
            images=images,
            images_per_second=round(images * fraction / seconds, 1),
            **selection.consider(training),
        )
        tell(record)
        save()
    result = selection.result(training)
    tell.end(selection.describe())
    stop_tracker(accelerator)
    accelerator.free_memory()
    return result


class _Teller:
    """Tells the user, the caller and the tracker how training goes."""

    def __init__(
        self,
        config: FinetuneConfig,
        accelerator: Accelerator,
        on_epoch: Callable[[EpochRecord], None] | None,
        folder: Path | None,
        reports: str = "top-1",
    ) -> None:
        self.reports = reports
        self.config, self.accelerator, self.on_epoch = config, accelerator, on_epoch
        self.records: list[EpochRecord] = []
        self.tracker = start_tracker(config, accelerator, folder)
        self.started, self.before = time.monotonic(), 0
        """When this process began, and the epochs done before."""

    def start(self, training: Training, half: torch.dtype | None) -> None:
        """Say what really takes part: processes are counted by asking them."""
        self.started, self.before = time.monotonic(), len(self.records)
        accelerator, config = self.accelerator, self.config
        processes = int(accelerator.reduce(torch.ones((), device=accelerator.device)))
        parts = processes * config.accumulation
        part = f"{config.batch_size / parts:g}"
        micro = f" in {config.accumulation} micro-batches" if config.accumulation > 1 else ""
        work = "fine-tuning" if training.matched is None else "matching the full network's layers"
        self._say(
            f"{work} on {processes} process{'es' if processes > 1 else ''} ({accelerator.device.type}, "
            f"{accelerator.mixed_precision} mixed precision): {config.batch_size} images a step "
            f"({part} per process{micro}), {training.steps} steps an epoch, highest learning rate {config.lr:g}"
        )
        layers = [layer for layer in training.network.modules() if isinstance(layer, _BatchNorm)]
        alone = any(not isinstance(layer, nn.SyncBatchNorm) for layer in layers)
        if alone and parts > 1 and config.batch_size < FEW * parts and accelerator.is_main_process:
            setting = "batch_size" if training.matched is None else "match_batch_size"
            warn(
                f"each part of a step has only {part} images, whose BatchNorm statistics are noisy: raise `{setting}` "
                f"to {FEW * parts} or more, or divide a step less"
            )
        if half is not None:
            self._say(f"`model` is in {str(half).removeprefix('torch.')}: it is trained, and returned, in float32")
        if training.epoch or training.step:
            self._say(f"going on in epoch {training.epoch + 1} after step {training.step}")

    def __call__(self, record: EpochRecord) -> None:
        self.again([record])
        scores = "".join(
            f", {name} {f'{value:.2%}' if self.reports == 'top-1' else f'{value:.4g}'}"
            for name, value in ((f"holdout {self.reports}", record.top1), ("averaged weights", record.ema_top1))
            if value is not None
        )
        speed = f"{record.images_per_second:,.0f} images/s"
        self._say(f"epoch {record.epoch}/{self.config.epochs}: loss {record.loss:.4f}{scores}, {speed}{self._left()}")
        if self.tracker is not None:
            values = {key: value for key, value in asdict(record).items() if value is not None and key != "epoch"}
            self.accelerator.log(values, step=record.epoch)

    def _left(self) -> str:
        """The time that the epochs to come may take, as those of this process did."""
        done = len(self.records) - self.before
        seconds = (time.monotonic() - self.started) / done * (self.config.epochs - len(self.records))
        return f", {tqdm.format_interval(seconds)} left" if seconds >= 1 else ""

    def end(self, note: str | None) -> None:
        if note is not None:
            self._say(note)

    def again(self, records: list[EpochRecord]) -> None:
        self.records += records
        for record in records if self.on_epoch else ():
            self.on_epoch(record)  # type: ignore[misc]

    def _say(self, text: str) -> None:
        if self.accelerator.is_main_process:
            say(text)
