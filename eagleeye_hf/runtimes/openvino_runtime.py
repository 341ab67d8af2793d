"""OpenVINO on the CPU. Needs the extra `openvino`."""

from __future__ import annotations

import functools

import numpy as np
import openvino
import torch
from torch import Tensor, nn

from eagleeye_hf.channels.graph import ChannelGraph
from eagleeye_hf.runtimes.onnx_slices import load_slices, write_proto
from eagleeye_hf.runtimes.profiles import assign_weights, low_quantile
from eagleeye_hf.runtimes.runtime import Loader, OperatorTime, Place, Program, Weights, cpu_title

MULTIPLYING = ("Convolution", "GroupConvolution", "FullyConnected", "MatMul", "Deconvolution")
WARM_UP = 2


@functools.cache
def _core() -> openvino.Core:
    """One for the life of the process: each brings a stack for signals and frees it when it goes (OpenVINO 2026.4), and
    the next signal, of a loader's worker that ended, say, would be the process's last."""
    return openvino.Core()


class OpenVinoRuntime:
    """Runs the network exported to ONNX, as OpenVINO compiles it: in float32, also where it would choose less.

    Args:
        precision: `float32`, or `int8` for the quantised network.
    """

    def __init__(self, threads: int = 1, batch_size: int = 1, precision: str = "float32") -> None:
        self.threads, self.device = threads, torch.device("cpu")
        self.place = Place(
            runtime="openvino", device=cpu_title(), threads=threads, batch_size=batch_size, precision=precision
        )

    def load(self, model: nn.Module, images: Tensor) -> Program:
        return self.load_graph(write_proto(model, images, self.place.precision).SerializeToString(), images)

    def load_thin(self, model: nn.Module, graph: ChannelGraph, images: Tensor) -> Loader:
        def open_program(thin: bytes, weights: Weights) -> Program:
            return self.load_graph(thin, images, weights)

        return load_slices(model, graph, images, self.place.precision, open_program)

    def load_graph(self, graph: bytes, images: Tensor, weights: Weights = ()) -> Program:
        return OpenVinoProgram(graph, images.cpu().to(torch.float32).numpy(), self.threads, weights)


class OpenVinoProgram:
    """A compiled graph, and the images that it runs on."""

    def __init__(self, graph: bytes, images: np.ndarray, threads: int, weights: Weights = ()) -> None:
        self._graph, self._threads, self._images, self.weights = graph, threads, images, weights
        self._request = self._compile().create_infer_request()

    def _compile(self, profile: bool = False) -> openvino.CompiledModel:
        core = _core()
        settings = {
            "INFERENCE_NUM_THREADS": self._threads,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
            "PERF_COUNT": profile,
        }
        return core.compile_model(core.read_model(self._graph), "CPU", settings)

    def run(self) -> object:
        return self._request.infer([self._images])[0]

    def profile(self, rounds: int) -> list[OperatorTime]:
        request = self._compile(profile=True).create_infer_request()
        times, ran = [], []
        for _ in range(rounds + WARM_UP):
            request.infer([self._images])
            ran = request.profiling_info  # all of them: whether a copy is executed can change from run to run
            times.append([e.real_time.total_seconds() * 1000 for e in ran])
        found = assign_weights([e.node_type in MULTIPLYING for e in ran], None, self.weights)
        took = low_quantile(np.array(times[WARM_UP:]))
        return [
            OperatorTime(name=e.node_name, kind=e.node_type, milliseconds=float(ms), weight=weight)
            for e, ms, weight in zip(ran, took, found, strict=True)
        ]
