"""What a job is going to do, and how long it may take: counted, and predicted from a few timed steps."""

from __future__ import annotations

import copy
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from eagleeye_hf.data.splits import Splits
from eagleeye_hf.evaluation.metrics import evaluate_model
from eagleeye_hf.networks.running import device_of
from eagleeye_hf.runs.config import RunConfig
from eagleeye_hf.runtimes.profiling import SECONDS
from eagleeye_hf.search.config import SearchConfig

FORWARD, STEP = 32, 16
"""Images of a timed pass and of a timed training step; others in proportion."""
OVERHEAD = 1.1
"""A score's time over its bare passes (benchmarks/search_overhead.md)."""


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


def plan_job(model: nn.Module, data: Splits, config: RunConfig, notes: Sequence[str], processes: int = 1) -> Plan:
    """Count what a job will do, and time a few of its steps on the full network."""
    forward, train, decode = _time_steps(model, data, config)
    search, tuning, keep = config.search, config.finetune, _kept(config.search)
    counts = [data.calibration.count(), data.holdout.count(), data.train.count(), data.test.count()]
    workers, phases = max(1, config.data.num_workers), list[Phase]()

    def add_training(name: str, epochs: int, rate: float, image: float) -> None:
        steps = -(-counts[2] // tuning.batch_size)
        what = f"{counted(epochs, 'epoch')} of {steps:,} steps, {tuning.batch_size} images a step, rate {rate:g}"
        each = max(image, decode / workers) * counts[2] + forward * counts[1]
        phases.append(Phase(name=name, what=what, seconds=epochs * each / processes))

    if config.adapt.adapt_epochs:
        add_training("adaptation", config.adapt.adapt_epochs, config.adapt.adapt_lr or tuning.lr, train)
    if config.strategy is None:
        candidates = search.candidates or 0
        images = _images_per_candidate(search) * (counts[0] + counts[1])
        seconds = 60 * search.minutes if search.minutes else candidates * images * keep * forward * OVERHEAD / processes
        if "latency" in search.budgets[0].limits:
            seconds += SECONDS
        what = f"{candidates:,} candidates, {search.budgets[0]}" if candidates else str(search.budgets[0])
        phases.append(Phase(name="search", what=what, seconds=seconds))
    if tuning.epochs:
        taught = forward if tuning.distillation else 0.0
        add_training("fine-tuning", tuning.epochs, tuning.lr, train * keep + taught)
    tested = 2 * counts[3] * (forward + decode / workers) / processes
    phases.append(Phase(name="measuring", what="top-1 on the test images, milliseconds", seconds=tested + 5))
    names = f"{len(data.label_names)} classes"
    device = device_of(model)
    return Plan(
        title=f"{config.network.model} on {data.name} ({names}), into {config.output}",
        images=(
            f"{counts[2]:,} train, {counts[0]:,} calibrate, {counts[1]:,} score, "
            f"{counts[3]:,} test (split {data.test.split})"
        ),
        phases=tuple(phases),
        notes=tuple(notes),
        place=_place(device, processes),
        gigabytes=_peak_gigabytes(device),
    )


def _time_steps(model: nn.Module, data: Splits, config: RunConfig) -> tuple[float, float, float]:
    """Seconds per image of a pass, of a training step, and of decoding."""
    device = device_of(model)
    started = time.perf_counter()
    batches = data.holdout.cached_batches(FORWARD)  # they are decoded now, and kept for the search
    decode = (time.perf_counter() - started) / data.holdout.count()
    batch = batches[0]
    forward = _fastest(lambda: evaluate_model(model, [batch]), device) / len(batch[1])
    network = copy.deepcopy(model).train()
    images, labels = batch[0][:STEP].to(device), batch[1][:STEP].to(device)

    def step() -> None:
        nn.functional.cross_entropy(network(images), labels).backward()

    train = _fastest(step, device) / len(labels) if config.finetune.epochs or config.adapt.adapt_epochs else 0.0
    return forward, train, decode


def _fastest(run: Callable[[], object], device: torch.device, turns: int = 3) -> float:
    times = []
    for _ in range(turns):
        started = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
    return min(times)


def _images_per_candidate(search: SearchConfig) -> float:
    """The part of the images that a candidate sees on average."""
    return sum(fraction * search.promote**stage for stage, fraction in enumerate(search.stages))


def _kept(search: SearchConfig) -> float:
    """The part of the full network's work that a candidate does, as far as the budget tells."""
    limits = [limit.value for limit in search.budgets[0].limits.values() if limit.is_fraction]
    return min(limits, default=0.5)


def _place(device: torch.device, processes: int) -> str:
    several = f"{processes} x " if processes > 1 else ""
    if device.type == "cuda":
        return several + torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{several}the CPU ({threads} thread{'s' if threads > 1 else ''})"


def _peak_gigabytes(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
