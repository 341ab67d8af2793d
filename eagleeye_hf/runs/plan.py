"""What a job is going to do, and how long it may take: counted, and predicted from a few timed steps."""

from __future__ import annotations

import copy
import resource
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from eagleeye_hf.data.splits import Splits
from eagleeye_hf.evaluation.format import native_format
from eagleeye_hf.evaluation.metrics import evaluate_model
from eagleeye_hf.networks.running import channels_last, device_of, synchronize
from eagleeye_hf.runs.config import RunConfig
from eagleeye_hf.runtimes.profiling import SECONDS
from eagleeye_hf.search.config import SearchConfig
from eagleeye_hf.search.failures import free_memory
from eagleeye_hf.search.stages import candidates_of, list_stages, work_of
from eagleeye_hf.telling import say
from eagleeye_hf.training.match import match_length

STEP, STEP_ON_GPU = 16, 128
"""Images of a timed training step; a timed pass sees twice as many, others in proportion."""
OVERHEAD = 1.1
"""A score's time over its bare passes (benchmarks/search_overhead.md)."""
RANKED = 2.5
"""Passes over the calibration images in whose time channels are ranked by what layers read, on a CPU."""
ONCE, EACH, EACH_STEP = {False: 0.0, True: 20.0}, {False: 0.0, True: 0.1}, {False: 0.0, True: 0.05}
"""Seconds of a search, of each of its candidates and of each step by which its leaders are matched, beside their
passes; on a GPU, where launching them takes long (benchmarks/gpu.md)."""
ADAPTATION, SEARCH, MATCHING, FINETUNING = "adaptation", "search", "matching", "fine-tuning"
MEASURING = "measuring"
"""The phases of a job."""
RESUMED = 0.5
"""Phases that took less than this part of the prediction were done by a run before this one, and tell no pace."""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A part of a job."""

    name: str
    what: str
    seconds: float
    """Predicted."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A job before it starts."""

    title: str
    images: str
    phases: tuple[Phase, ...]
    notes: tuple[str, ...]
    place: str
    gigabytes: float
    """Of memory that the timed steps took at most, the network and the images that are kept included."""

    @property
    def seconds(self) -> float:
        return sum(phase.seconds for phase in self.phases)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"seconds": self.seconds}

    def __str__(self) -> str:
        rows = [("images", self.images, ""), *((p.name, p.what, about(p.seconds)) for p in self.phases)]
        rows.append(("together", f"on {self.place}, {self.gigabytes:.1f} GB of memory", about(self.seconds)))
        wide = max(len(what) for _, what, _ in rows) + 2
        lines = [self.title, *(f"  {name:<13}{what:<{wide}}{seconds}".rstrip() for name, what, seconds in rows)]
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])


def counted(number: int, word: str) -> str:
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def about(seconds: float) -> str:
    """A predicted time, as precise as predictions are."""
    if seconds < 1:
        return ""
    if seconds < 90:
        return f"about {seconds:.0f} s"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Images of each split."""

    train: int
    calibration: int
    holdout: int
    test: int


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Seconds per image, of the full network on one process."""

    forward: float
    """A pass in the format that candidates are scored in."""
    train: float
    """A training step, without the full network's outputs that may teach."""
    decode: float
    """Reading and decoding on one core."""
    whole: bool = False
    """Whether candidates are scored in the full network's shapes, as on a GPU."""


def plan_job(
    model: nn.Module, data: Splits, config: RunConfig, notes: Sequence[str], accelerator: Accelerator | None = None
) -> Plan:
    """Count what a job will do, and time a few of its steps on the full network."""
    counts, rates = count_and_time(model, data, accelerator)
    phases = predict_phases(config, counts, rates, accelerator.num_processes if accelerator else 1)
    title = f"{config.network.model} on {data.name} ({len(data.label_names)} classes), into {config.output}"
    return make_plan(title, model, data, counts, phases, notes, accelerator)


def count_and_time(model: nn.Module, data: Splits, accelerator: Accelerator | None = None) -> tuple[Counts, Rates]:
    """The images of each split, and the seconds that a few steps of the full network take."""
    counts = Counts(
        train=data.train.count(),
        calibration=data.calibration.count(),
        holdout=data.holdout.count(),
        test=data.test.count(),
    )
    size = STEP_ON_GPU if device_of(model).type == "cuda" else STEP
    started = time.perf_counter()
    images, labels = next(data.holdout.batches(2 * size))
    decode = (time.perf_counter() - started) / len(labels)
    while True:
        try:
            return counts, time_steps(model, images, labels, decode, accelerator)
        except torch.OutOfMemoryError:  # training divides a step among processes and micro-batches
            if len(labels) <= 4:
                raise
            images, labels = images[: len(labels) // 2], labels[: len(labels) // 2]
        free_memory()


def make_plan(
    title: str,
    model: nn.Module,
    data: Splits,
    counts: Counts,
    phases: tuple[Phase, ...],
    notes: Sequence[str] = (),
    accelerator: Accelerator | None = None,
) -> Plan:
    """What a plan says beside its phases."""
    device = device_of(model)
    return Plan(
        title=title,
        images=(
            f"{counts.train:,} train, {counts.calibration:,} calibrate, {counts.holdout:,} score, "
            f"{counts.test:,} test (split {data.test.split})"
        ),
        phases=phases,
        notes=tuple(notes),
        place=name_place(device, accelerator.num_processes if accelerator else 1),
        gigabytes=peak_gigabytes(device),
    )


def predict_phases(config: RunConfig, counts: Counts, rates: Rates, processes: int = 1) -> tuple[Phase, ...]:
    """The parts of a job and how long each may take; nothing is loaded or run."""
    search, tuning, keep = config.search, config.finetune, kept_part(config.search)
    decode, phases = rates.decode / max(1, config.data.num_workers), list[Phase]()

    def add_training(name: str, epochs: int, rate: float, image: float) -> None:
        steps = -(-counts.train // tuning.batch_size)
        what = f"{counted(epochs, 'epoch')} of {steps:,} steps, {tuning.batch_size} images a step, rate {rate:g}"
        each = max(image, decode) * counts.train + rates.forward * counts.holdout
        phases.append(Phase(name=name, what=what, seconds=epochs * each / processes))

    if config.adapt.adapt_epochs:
        add_training(ADAPTATION, config.adapt.adapt_epochs, config.adapt.adapt_lr or tuning.lr, rates.train)
    if config.strategy is None:
        candidates = search.candidates or 0
        images = images_per_candidate(search) * (counts.calibration + counts.holdout)
        each = images * (1.0 if rates.whole else keep) * rates.forward * OVERHEAD + EACH[rates.whole]
        launching = matching_steps(search) * EACH_STEP[rates.whole]
        seconds = (candidates * each + launching) / processes + ONCE[rates.whole]
        if search.minutes:
            seconds = 60 * search.minutes
        if "latency" in search.budgets[0].limits:
            seconds += SECONDS
        if "width" in search.dimensions and config.importance.criterion == "reconstruction" and not rates.whole:
            seconds += RANKED * counts.calibration * rates.forward
        what = f"{candidates:,} candidates, {search.budgets[0]}" if candidates else str(search.budgets[0])
        phases.append(Phase(name=SEARCH, what=what, seconds=seconds))
    if config.match.match_steps != 0:
        size, epochs, steps = match_length(config.match, counts.train)
        images = size * epochs * steps
        what = f"{epochs * steps:,} steps, {size} images a step, without labels, rate {config.match.match_lr:g}"
        each = max(rates.train * keep + rates.forward, decode)
        seconds = (each * images + epochs * rates.forward * counts.holdout) / processes
        phases.append(Phase(name=MATCHING, what=what, seconds=seconds))
    if tuning.epochs:
        taught = rates.forward if tuning.distillation else 0.0
        add_training(FINETUNING, tuning.epochs, tuning.lr, rates.train * keep + taught)
    tested = 2 * counts.test * (rates.forward + decode) / processes
    phases.append(Phase(name=MEASURING, what="top-1 on the test images, milliseconds", seconds=tested + 5))
    return tuple(phases)


def time_steps(
    model: nn.Module, images: Tensor, labels: Tensor, decode: float, accelerator: Accelerator | None = None
) -> Rates:
    """Time a pass over these images and a training step on half of them.

    Args:
        decode: as in `Rates`.
        accelerator: its mixed precision is that of training.
    """
    device = device_of(model)
    scoring = native_format(device)
    batch = [(scoring.convert(images.to(device)), labels)]
    half = max(2, len(labels) // 2)
    network = channels_last(copy.deepcopy(model).train())
    seen, target = images[:half].to(device, memory_format=torch.channels_last), labels[:half].to(device)

    def look() -> None:
        with scoring.autocast(device):
            evaluate_model(model, batch)

    def step() -> None:
        with accelerator.autocast() if accelerator else nullcontext():
            loss = nn.functional.cross_entropy(network(seen), target)
        loss.backward()

    return Rates(
        forward=_fastest(look, device) / len(labels),
        train=_fastest(step, device) / half,
        decode=decode,
        whole=device.type == "cuda",
    )


def _fastest(run: Callable[[], object], device: torch.device, turns: int = 3) -> float:
    times = []
    for _ in range(turns):
        started = time.perf_counter()
        run()
        synchronize(device)
        times.append(time.perf_counter() - started)
    return min(times)


class Clock:
    """Tells which phase of a planned job begins, and how long the whole job may take from there on."""

    def __init__(self, plan: Plan) -> None:
        self.phases, self.started = plan.phases, time.monotonic()

    def __call__(self, name: str) -> None:
        here = [phase.name for phase in self.phases].index(name)
        predicted = sum(phase.seconds for phase in self.phases[:here])
        pace = (time.monotonic() - self.started) / predicted if predicted > 1 else 1.0
        left = sum(phase.seconds for phase in self.phases[here:])
        left *= pace if pace > RESUMED else 1.0
        rest = f"; {about(left)} for all that is left" if left >= 1 else ""
        say(f"{here + 1} of {len(self.phases)}: {name}{rest}")


def images_per_candidate(search: SearchConfig) -> float:
    """The part of the images that a candidate sees on average."""
    num = search.candidates or 1
    return sum(work_of(list_stages(search.stages, search.matched), num, search.promote)) / num


def matching_steps(search: SearchConfig) -> int:
    """Those that all leaders of a search make together."""
    stages = list_stages(search.stages, search.matched)
    counts = candidates_of(stages, search.candidates or 1, search.promote)
    return sum(count * stage.steps for stage, count in zip(stages, counts, strict=True))


def kept_part(search: SearchConfig) -> float:
    """The part of the full network's work that a candidate does, as far as the budget tells."""
    limits = [limit.value for limit in search.budgets[0].limits.values() if limit.is_fraction]
    return min(limits, default=0.5)


def name_place(device: torch.device, processes: int) -> str:
    several = f"{processes} x " if processes > 1 else ""
    if device.type == "cuda":
        return several + torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{several}the CPU ({threads} thread{'s' if threads > 1 else ''})"


def peak_gigabytes(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
