"""Measured milliseconds."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from eagleeye_hf.networks.running import device_of, evaluation_mode
from eagleeye_hf.runtimes.config import LatencyConfig, RuntimeName
from eagleeye_hf.runtimes.runtime import Place, Program, Runtime, find_runtime

NOISY = 0.3
"""Noise above which milliseconds are to be taken with care."""
WARM_UP = 3
"""Rounds that don't count."""
QUICK = 5.0
"""Milliseconds below which a program's time depends on what ran before it."""


@dataclass(frozen=True, kw_only=True)
class Latency:
    """A measurement: milliseconds of one forward pass, and where it was made."""

    milliseconds: float
    full_ms: float
    """Of the full network, which took turns with this one."""
    place: Place
    noise: float = 0.0
    """How far the median of the rounds lies above their minimum, of the noisier of the two networks, as a fraction."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Latency:
        return Latency(**{**data, "place": Place.from_dict(data["place"])})


def measure_latency(
    models: Sequence[nn.Module],
    input_size: Sequence[int],
    runtime: RuntimeName = "torch",
    *,
    batch_size: int = 1,
    rounds: int = 20,
    threads: int | None = None,
    int8: bool = False,
) -> list[float]:
    """Milliseconds of one forward pass per model, in eval mode.

    The models take turns in random order, and the fastest of their rounds counts: it is the least disturbed by other
    work on the machine.

    Args:
        input_size: (channels, height, width) of one image.
        runtime: as in `LatencyConfig`; PyTorch runs on the device where the models live.
        batch_size: images of one pass.
        rounds: turns that count, after a few that don't.
        threads: of the CPU; by default as many as PyTorch has.
        int8: measure the networks quantised to 8-bit integers.
    Raises:
        EagleEyeError: the runtime is unknown, not installed, or can't run here.
    """
    config = LatencyConfig(runtime=runtime, threads=threads, latency_batch=batch_size, int8=int8)
    kind = find_runtime(config, device_of(models[0]))
    with evaluation_mode(*models):
        programs = [kind.load(model, draw_images(kind, input_size)) for model in models]
        return [min(turns) for turns in take_turns(programs, rounds)]


def compare_latency(
    full: nn.Module,
    thin: Sequence[nn.Module],
    input_size: Sequence[int],
    runtime: Runtime,
    rounds: int = 20,
    thin_size: Sequence[int] | None = None,
) -> list[Latency]:
    """Measure networks beside the full one; one record per thin network.

    Args:
        thin_size: of their images, where it is not the full network's.
    """
    with evaluation_mode(full, *thin):
        sizes = [input_size, *[thin_size or input_size] * len(thin)]
        pairs = zip((full, *thin), sizes, strict=True)
        programs = [runtime.load(model, draw_images(runtime, size)) for model, size in pairs]
        return compare_programs(programs[0], programs[1:], runtime.place, rounds)


def compare_programs(full: Program, thin: Sequence[Program], place: Place, rounds: int = 20) -> list[Latency]:
    """The same of programs that are loaded."""
    full_turns, *others = take_turns([full, *thin], rounds)
    return [
        Latency(
            milliseconds=min(turns),
            full_ms=min(full_turns),
            place=place,
            noise=max(_noise(full_turns), _noise(turns)),
        )
        for turns in others
    ]


def take_turns(programs: Sequence[Program], rounds: int) -> list[list[float]]:
    """Milliseconds of every round, per program, in random order: on a busy machine time slices can fall into step with
    a fixed one. A quick program runs once more before it is timed, for the others have emptied the caches."""
    times: list[list[float]] = [[] for _ in programs]
    quick = [False] * len(programs)
    order, turns = list(range(len(programs))), random.Random(0)
    for number in range(rounds + WARM_UP):
        turns.shuffle(order)
        for place in order:
            if quick[place]:
                programs[place].run()
            started = time.perf_counter()
            programs[place].run()
            took = (time.perf_counter() - started) * 1000
            quick[place] = took < QUICK
            if number >= WARM_UP:
                times[place].append(took)
    return times


def draw_images(runtime: Runtime, input_size: Sequence[int]) -> Tensor:
    """A batch of random images as the runtime is to take them."""
    return torch.randn(runtime.place.batch_size, *input_size)


def _noise(turns: Sequence[float]) -> float:
    return statistics.median(turns) / min(turns) - 1
