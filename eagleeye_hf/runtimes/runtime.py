"""What a runtime is, and which there are."""

from __future__ import annotations

import importlib.util
import platform
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from eagleeye_hf.channels.graph import ChannelGraph
from eagleeye_hf.errors import EagleEyeError
from eagleeye_hf.runtimes.config import LatencyConfig, RuntimeName

TITLES = {
    "torch": "PyTorch",
    "compile": "torch.compile",
    "onnxruntime": "ONNX Runtime",
    "onnxruntime-cuda": "ONNX Runtime (CUDA)",
    "tensorrt": "ONNX Runtime (TensorRT)",
    "openvino": "OpenVINO",
}
"""Runtimes, and what people call them."""
PACKAGES = {"onnxruntime": "onnx", "onnxruntime-cuda": "onnx", "tensorrt": "onnx", "openvino": "openvino"}
"""The extra that a runtime needs."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where milliseconds are of."""

    runtime: str
    device: str
    threads: int
    """Of the CPU; 0 where they don't matter."""
    batch_size: int = 1
    precision: str = "float32"

    def __str__(self) -> str:
        threads = f", {self.threads} thread{'s' if self.threads > 1 else ''}" if self.threads else ""
        precision = f", {self.precision}" if self.precision != "float32" else ""
        return f"{TITLES.get(self.runtime, self.runtime)} on {self.device}{threads}{precision}"

    @property
    def images(self) -> str:
        """How many images a pass takes, in words."""
        return "one image" if self.batch_size == 1 else f"{self.batch_size} images"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Place:
        return Place(**data)


@dataclass(frozen=True, kw_only=True)
class OperatorTime:
    """What one operator of a program took."""

    name: str
    """As the runtime calls it."""
    kind: str
    milliseconds: float
    weight: str = ""
    """The tensor of the network that it multiplies with; empty where it has none, or none that is known."""


Weights = Sequence[tuple[str, tuple[int, ...]]]
"""Names and shapes of a network's weights in the order of a graph, for profiles."""


class Program(Protocol):
    """A network, ready to run on the images that it was loaded with."""

    def run(self) -> object:
        """One forward pass; returns when it is done."""

    def profile(self, rounds: int) -> list[OperatorTime]:
        """Milliseconds per operator in the order of execution, a low quantile of the rounds."""


class Loader(Protocol):
    """Loads thin versions of one network."""

    def __call__(self, keep: Mapping[str, np.ndarray], removed_blocks: Collection[str] = (), /) -> Program:
        """From the channels kept per pruned group, as `choose_channels` gives them, and the blocks that are gone."""


class Runtime(Protocol):
    """What executes a network where it is used."""

    @property
    def place(self) -> Place:
        """Where its milliseconds are of."""

    @property
    def device(self) -> torch.device:
        """Where a network lives that is to be loaded."""

    def load(self, model: nn.Module, images: Tensor) -> Program:
        """The network, ready to run."""

    def load_thin(self, model: nn.Module, graph: ChannelGraph, images: Tensor) -> Loader:
        """What loads thin versions of one network, without writing each anew where that can be saved."""


class GraphRuntime(Runtime, Protocol):
    """One that runs graphs of ONNX."""

    def load_graph(self, graph: bytes, images: Tensor, weights: Weights = ()) -> Program:
        """A serialised graph, ready to run."""


def find_runtime(config: LatencyConfig | None = None, device: torch.device | str = "cpu") -> Runtime:
    """The runtime that a config asks for.

    Args:
        device: where the network lives; PyTorch runs it there, and `auto` goes by it.
    Raises:
        EagleEyeError: it is not installed, or can't run on this machine.
    """
    config = config or LatencyConfig()
    device, name = torch.device(device), config.runtime
    if name == "auto":
        name = "onnxruntime" if config.int8 or (device.type == "cpu" and is_installed("onnxruntime")) else "torch"
    if name in ("torch", "compile"):
        from eagleeye_hf.runtimes.torch_runtime import TorchRuntime

        threads = config.threads or torch.get_num_threads()
        return TorchRuntime(device, threads, config.latency_batch, compiled=name == "compile")
    return find_graph_runtime(replace(config, runtime=name))


def find_graph_runtime(config: LatencyConfig) -> GraphRuntime:
    """The same of a runtime for graphs of ONNX: ONNX Runtime where the config leaves that open.

    Raises:
        EagleEyeError: it is not installed, or can't run on this machine.
    """
    name: RuntimeName = "onnxruntime" if config.runtime == "auto" else config.runtime
    how = config.threads or torch.get_num_threads(), config.latency_batch, "int8" if config.int8 else "float32"
    try:
        if name == "openvino":
            from eagleeye_hf.runtimes.openvino_runtime import OpenVinoRuntime

            return OpenVinoRuntime(*how)
        from eagleeye_hf.runtimes.onnx_runtime import OnnxRuntime
    except ImportError as error:
        raise EagleEyeError(
            f"`runtime={name}` needs {error.name}; install it with: pip install eagleeye-hf[{PACKAGES[name]}]"
        ) from error
    return OnnxRuntime(name, *how)


def is_installed(name: str) -> bool:
    """Whether all is there that a runtime on the CPU needs."""
    needed = {"torch": ("torch",), "openvino": ("openvino", "onnxscript")}.get(name, ("onnxruntime", "onnxscript"))
    return all(_find(package) for package in needed)


def _find(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # marked as absent in sys.modules
        return False


def runtimes_here(device: torch.device | str = "cpu") -> list[RuntimeName]:
    """Those that are installed and quick to load, for tables of all of them."""
    found: list[RuntimeName] = ["torch"]
    on_cpu: tuple[RuntimeName, ...] = ("onnxruntime", "openvino")
    if torch.device(device).type == "cpu":
        found += [name for name in on_cpu if is_installed(name)]
    return found


@cache
def cpu_name() -> str:
    """The processor's own name where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def cpu_title() -> str:
    """The CPU as tables name it."""
    return f"CPU ({platform.machine()})"
