"""PyTorch, as it is or through `torch.compile`."""

from __future__ import annotations

import itertools
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from eagleeye_hf.channels.graph import ChannelGraph
from eagleeye_hf.channels.slicing import slice_model
from eagleeye_hf.networks.running import dtype_of, synchronize
from eagleeye_hf.runtimes.profiles import assign_weights, low_quantile
from eagleeye_hf.runtimes.runtime import Loader, OperatorTime, Place, Program, cpu_title

WARM_UP = 2
CONVOLUTIONS = ("convolution", "addmm", "mm", "linear", "bmm")
"""What operators with weights have in their names, compiled."""


class TorchRuntime:
    """Runs the network on the device where it lives."""

    def __init__(self, device: torch.device, threads: int, batch_size: int = 1, compiled: bool = False) -> None:
        self.device, self.threads, self.compiled = device, threads, compiled
        cuda = device.type == "cuda"
        self.place = Place(
            runtime="compile" if compiled else "torch",
            device=torch.cuda.get_device_name(device) if cuda else cpu_title() if device.type == "cpu" else device.type,
            threads=threads if device.type == "cpu" else 0,
            batch_size=batch_size,
        )

    def load(self, model: nn.Module, images: Tensor) -> Program:
        inputs = images.to(self.device, dtype_of(model))
        if not self.compiled:
            return TorchProgram(model, inputs, self.threads)
        return CompiledProgram(model, inputs, self.threads)

    def load_thin(self, model: nn.Module, graph: ChannelGraph, images: Tensor) -> Loader:
        def load(keep: Mapping[str, np.ndarray], removed_blocks: Collection[str] = ()) -> Program:
            return self.load(slice_model(model, graph, keep, removed_blocks).eval(), images)

        return load


class TorchProgram:
    """Profiled by hooks: a layer's time ends where the next one begins, so that they add up to the whole."""

    def __init__(self, model: nn.Module, images: Tensor, threads: int) -> None:
        self.model, self.images, self.threads = model, images, threads

    def run(self) -> object:
        with torch.inference_mode(), _threads(self.threads):
            outputs = self.model(self.images)
            synchronize(self.images.device)
        return outputs

    def profile(self, rounds: int) -> list[OperatorTime]:
        marks: list[Any] = []
        layers = [(name, module) for name, module in self.model.named_modules() if not list(module.children())]
        calls: list[tuple[str, nn.Module]] = []

        def mark(name: str, module: nn.Module) -> None:
            calls.append((name, module))
            marks.append(self._now())

        hooks = [m.register_forward_pre_hook(lambda m, _, name=name: mark(name, m)) for name, m in layers]
        times = []
        try:
            for number in range(rounds + WARM_UP):
                marks.clear()
                calls.clear()
                started = self._now()
                self.run()
                ended = self._now()
                if number >= WARM_UP:
                    times.append(self._gaps([started, *marks, ended]))
        finally:
            for hook in hooks:
                hook.remove()
        took = low_quantile(np.array(times))
        names = [("input", ""), *((name, type(module).__name__) for name, module in calls)]
        weighted = ["", *(f"{name}.weight" if _multiplies(module) else "" for name, module in calls)]
        return [
            OperatorTime(name=name, kind=kind, milliseconds=float(ms), weight=weight)
            for (name, kind), ms, weight in zip(names, took, weighted, strict=True)
        ]

    def _now(self) -> Any:
        if self.images.device.type != "cuda":
            synchronize(self.images.device)
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _gaps(self, marks: list[Any]) -> list[float]:
        if self.images.device.type != "cuda":
            return (np.diff(marks) * 1000).tolist()
        torch.cuda.synchronize(self.images.device)
        return [first.elapsed_time(second) for first, second in itertools.pairwise(marks)]


class CompiledProgram:
    """Profiled by PyTorch's profiler: fused kernels are told apart by their names and order alone."""

    def __init__(self, model: nn.Module, images: Tensor, threads: int) -> None:
        self.model, self.images, self.threads = model, images, threads
        torch._dynamo.reset()  # what was compiled for other widths would be tried first
        options: dict[str, Any] = {"cpp.enable_kernel_profile": True} if images.device.type == "cpu" else {}
        self.compiled = torch.compile(model, dynamic=False, options=options)
        for _ in range(WARM_UP):
            self.run()

    def run(self) -> object:
        with torch.inference_mode(), _threads(self.threads):
            outputs = self.compiled(self.images)
            synchronize(self.images.device)
        return outputs

    def profile(self, rounds: int) -> list[OperatorTime]:
        cuda = self.images.device.type == "cuda"
        kinds = [torch.profiler.ProfilerActivity.CPU]
        kinds += [torch.profiler.ProfilerActivity.CUDA] if cuda else []
        runs: list[list[tuple[str, float]]] = []
        for _ in range(rounds):
            with torch.profiler.profile(activities=kinds) as profiler:
                self.run()
            runs.append(_kernels(profiler.events(), cuda))
        longest = max(len(run) for run in runs)
        runs = [run for run in runs if len(run) == longest]
        took = low_quantile(np.array([[ms for _, ms in run] for run in runs]))
        weights = [
            (f"{name}.weight", tuple(module.weight.shape))
            for name, module in self.model.named_modules()
            if _multiplies(module)
        ]
        names = [name for name, _ in runs[0]]
        found = assign_weights([any(word in name for word in CONVOLUTIONS) for name in names], None, weights)
        return [
            OperatorTime(name=name, kind=name.split("::")[-1], milliseconds=float(ms), weight=weight)
            for name, ms, weight in zip(names, took, found, strict=True)
        ]


def _kernels(events: Any, cuda: bool) -> list[tuple[str, float]]:
    """Names and milliseconds of what the compiled network ran, in order."""
    if cuda:
        ran = [e for e in events if e.device_type == torch.autograd.DeviceType.CUDA]
        return [(e.name, e.device_time / 1000) for e in sorted(ran, key=lambda e: e.time_range.start)]
    inner = [e for e in events if e.name.startswith(("graph_", "mkldnn::", "aten::", "onednn::"))]
    outermost = [e for e in inner if e.cpu_parent is None or e.cpu_parent not in inner]
    return [(e.name, e.cpu_time_total / 1000) for e in sorted(outermost, key=lambda e: e.time_range.start)]


def _multiplies(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.ndim >= 2


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    if before != number:
        torch.set_num_threads(number)
    try:
        yield
    finally:
        if before != number:
            torch.set_num_threads(before)
