"""Measured milliseconds."""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from eagleeye_hf.errors import EagleEyeError
from eagleeye_hf.networks.running import device_of, evaluation_mode
from eagleeye_hf.runtimes.torch_runtime import TorchRuntime

TITLES = {"torch": "PyTorch", "onnxruntime": "ONNX Runtime"}
"""Runtimes, and what people call them."""
NOISY = 0.3
"""Noise above which milliseconds are to be taken with care."""
WARM_UP = 3
"""Rounds that don't count."""


@dataclass(frozen=True, kw_only=True)
class Latency:
    """A measurement: milliseconds of one forward pass, and where it was made."""

    milliseconds: float
    full_ms: float
    """Of the full network, which took turns with this one."""
    runtime: str
    device: str
    threads: int
    batch_size: int = 1
    noise: float = 0.0
    """How far the median of the rounds lies above their minimum, of the noisier of the two networks, as a fraction."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Latency:
        return Latency(**data)

    @property
    def place(self) -> str:
        """Where it was measured, in words."""
        threads = f", {self.threads} thread{'s' if self.threads > 1 else ''}" if self.threads else ""
        return f"{TITLES.get(self.runtime, self.runtime)} on {self.device}{threads}"


class Runtime(Protocol):
    """What executes a network where it is used."""

    name: str

    def load(self, model: nn.Module, images: Tensor, folder: Path) -> Callable[[], object]:
        """A function that runs the network once on these images, and waits until it has."""

    def describe(self, model: nn.Module) -> tuple[str, int]:
        """The device, and the number of threads (0 where threads don't matter)."""


def find_runtime(name: str) -> Runtime:
    """A runtime by its name.

    Raises:
        EagleEyeError: it is unknown, or not installed.
    """
    if name == "torch":
        return TorchRuntime()
    if name == "onnxruntime":
        try:
            from eagleeye_hf.runtimes.onnx_runtime import OnnxRuntime
        except ImportError as error:
            raise EagleEyeError(
                "`runtime=onnxruntime` needs onnx; install it with: pip install eagleeye-hf[onnx]"
            ) from error
        return OnnxRuntime()
    raise EagleEyeError(f"`runtime={name}` is unknown; choose torch or onnxruntime")


def measure_latency(
    models: Sequence[nn.Module],
    input_size: Sequence[int],
    runtime: str = "torch",
    *,
    batch_size: int = 1,
    rounds: int = 20,
) -> list[float]:
    """Milliseconds of one forward pass per model, in eval mode.

    The models take turns in random order, and the fastest of their rounds counts: it is the least disturbed by other
    work on the machine.

    Args:
        input_size: (channels, height, width) of one image.
        runtime: `"torch"`, on the device where the models live, or `"onnxruntime"`, on the CPU.
        batch_size: images of one pass.
        rounds: turns that count, after a few that don't.
    Raises:
        EagleEyeError: the runtime is unknown or not installed.
    """
    return [min(times) for times in _time(models, input_size, find_runtime(runtime), batch_size, rounds)]


def _time(
    models: Sequence[nn.Module], input_size: Sequence[int], kind: Runtime, batch_size: int, rounds: int
) -> list[list[float]]:
    """Milliseconds of every round, per model."""
    images = torch.randn(batch_size, *input_size, device=device_of(models[0]))
    times: list[list[float]] = [[] for _ in models]
    order, turns = list(range(len(models))), random.Random(0)
    with tempfile.TemporaryDirectory() as folder, evaluation_mode(*models):
        runs = [kind.load(model, images, Path(folder)) for model in models]
        for number in range(rounds + WARM_UP):
            turns.shuffle(order)
            for place in order:
                started = time.perf_counter()
                runs[place]()
                if number >= WARM_UP:
                    times[place].append((time.perf_counter() - started) * 1000)
    return times


def compare_latency(
    full: nn.Module, thin: Sequence[nn.Module], input_size: Sequence[int], runtime: str = "torch", rounds: int = 20
) -> list[Latency]:
    """Measure networks beside the full one; one record per thin network."""
    kind = find_runtime(runtime)
    full_turns, *others = _time([full, *thin], input_size, kind, 1, rounds)
    device, threads = kind.describe(full)
    return [
        Latency(
            milliseconds=min(turns),
            full_ms=min(full_turns),
            runtime=runtime,
            device=device,
            threads=threads,
            noise=max(_noise(full_turns), _noise(turns)),
        )
        for turns in others
    ]


def _noise(turns: Sequence[float]) -> float:
    return statistics.median(turns) / min(turns) - 1
