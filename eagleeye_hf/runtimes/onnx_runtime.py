"""ONNX Runtime: on the CPU, by its CUDA and by its TensorRT execution provider. Needs the extra `onnx`."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from eagleeye_hf.channels.graph import ChannelGraph
from eagleeye_hf.errors import EagleEyeError
from eagleeye_hf.networks.running import dtype_of
from eagleeye_hf.runtimes.onnx_files import INPUT, OUTPUT
from eagleeye_hf.runtimes.onnx_slices import load_slices, write_proto
from eagleeye_hf.runtimes.profiles import assign_weights, low_quantile
from eagleeye_hf.runtimes.runtime import Loader, OperatorTime, Place, Program, Weights, cpu_title

PROVIDERS = {
    "onnxruntime": ("CPUExecutionProvider",),
    "onnxruntime-cuda": ("CUDAExecutionProvider", "CPUExecutionProvider"),
    "tensorrt": ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"),
}
MULTIPLYING = ("Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul", "NhwcFusedConv", "ConvTranspose")
MULTIPLYING_INT8 = ("QLinearConv", "QGemm", "QLinearMatMul", "ConvInteger", "MatMulInteger", "MatMulIntegerToFloat")
KERNEL = "_kernel_time"
"""How profiles call the time of an operator."""
WARM_UP = 2


class OnnxRuntime:
    """Runs the network exported to ONNX.

    Args:
        name: one of `PROVIDERS`.
        precision: `float32`, or `int8` for the quantised network.
    Raises:
        EagleEyeError: this build of ONNX Runtime lacks the execution provider.
    """

    def __init__(self, name: str = "onnxruntime", threads: int = 1, batch_size: int = 1, precision: str = "float32"):
        missing = set(PROVIDERS[name][:1]) - set(onnxruntime.get_available_providers())
        if missing:
            raise EagleEyeError(
                f"`runtime={name}` needs {missing.pop()}, which this ONNX Runtime lacks (it has "
                f"{', '.join(onnxruntime.get_available_providers())}); install onnxruntime-gpu in its place, or choose "
                "another runtime"
            )
        self.name, self.threads, self.device = name, threads, torch.device("cpu")
        on_cpu = name == "onnxruntime"
        self.place = Place(
            runtime=name,
            device=cpu_title() if on_cpu else torch.cuda.get_device_name(),
            threads=threads if on_cpu else 0,
            batch_size=batch_size,
            precision=precision,
        )

    def load(self, model: nn.Module, images: Tensor) -> Program:
        images = self._like(model, images)
        return self.load_graph(write_proto(model, images, self.place.precision).SerializeToString(), images)

    def load_thin(self, model: nn.Module, graph: ChannelGraph, images: Tensor) -> Loader:
        def open_program(thin: bytes, weights: Weights) -> Program:
            return self.load_graph(thin, images, weights)

        images = self._like(model, images)
        return load_slices(model, graph, images, self.place.precision, open_program)

    def _like(self, model: nn.Module, images: Tensor) -> Tensor:
        """In the precision of the network."""
        if dtype_of(model) == torch.bfloat16:
            raise EagleEyeError(
                f"`runtime={self.name}` has no convolutions in bfloat16; give the network in float32 or float16 "
                "(`model.half()`), or choose another runtime"
            )
        return images.to(dtype_of(model))

    def load_graph(self, graph: bytes, images: Tensor, weights: Weights = ()) -> Program:
        return OnnxProgram(graph, images.cpu().numpy(), self.name, self.threads, weights)


class OnnxProgram:
    """A session, and the images that it runs on.

    Args:
        weights: names and shapes of the network's weights in the order of the graph, for profiles.
    """

    def __init__(
        self,
        graph: bytes,
        images: np.ndarray,
        name: str,
        threads: int,
        weights: Weights = (),
    ) -> None:
        self._graph, self._name, self._threads, self.weights = graph, name, threads, weights
        self._session = open_session(graph, threads, name)
        self._images, self._binding = images, None
        if name != "onnxruntime":  # images and outputs stay on the device
            self._binding = self._session.io_binding()
            self._binding.bind_ortvalue_input(INPUT, onnxruntime.OrtValue.ortvalue_from_numpy(images, "cuda", 0))
            self._binding.bind_output(OUTPUT, "cuda")

    def run(self) -> object:
        return self._run(self._session)

    def _run(self, session: onnxruntime.InferenceSession) -> object:
        if self._binding is None or session is not self._session:
            return session.run([OUTPUT], {INPUT: self._images})[0]
        session.run_with_iobinding(self._binding)
        self._binding.synchronize_outputs()
        return None

    def profile(self, rounds: int) -> list[OperatorTime]:
        with tempfile.TemporaryDirectory() as folder:
            session = open_session(self._graph, self._threads, self._name, profile=str(Path(folder) / "profile"))
            for _ in range(rounds + WARM_UP):
                self._run(session)
            events = json.loads(Path(session.end_profiling()).read_text())
        ran = [e for e in events if e.get("cat") == "Node" and e["name"].endswith(KERNEL)]
        each = len(ran) // (rounds + WARM_UP)
        times = np.array([e["dur"] for e in ran], dtype=float).reshape(rounds + WARM_UP, each) / 1000
        kinds = [e["args"]["op_name"] for e in ran[:each]]
        shapes = [_weight_shape(e["args"]) for e in ran[:each]]
        multiplying = [kind in MULTIPLYING + MULTIPLYING_INT8 for kind in kinds]
        found = assign_weights(multiplying, shapes, self.weights)
        took = low_quantile(times[WARM_UP:])
        return [
            OperatorTime(name=e["name"].removesuffix(KERNEL), kind=kind, milliseconds=float(ms), weight=weight)
            for e, kind, ms, weight in zip(ran[:each], kinds, took, found, strict=True)
        ]


def _weight_shape(arguments: Mapping[str, Any]) -> tuple[int, ...] | None:
    """Of a convolution's weight, as the profile tells it; None where it was packed away."""
    shapes = [next(iter(entry.values())) for entry in arguments.get("input_type_shape", [])]
    return (
        tuple(shapes[1]) if len(shapes) > 1 and len(shapes[1]) == 4 and arguments["op_name"] != "QLinearConv" else None
    )


def open_session(
    graph: bytes | str, threads: int = 1, name: str = "onnxruntime", profile: str | None = None
) -> onnxruntime.InferenceSession:
    """A session of a serialised graph or of a file.

    Raises:
        EagleEyeError: the execution provider can't start here; ONNX Runtime would take another instead.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    if profile:
        options.enable_profiling, options.profile_file_prefix = True, profile
    session = onnxruntime.InferenceSession(graph, options, providers=list(PROVIDERS[name]))
    wanted = PROVIDERS[name][0]
    if wanted not in session.get_providers():
        raise EagleEyeError(
            f"`runtime={name}`: {wanted} is installed but did not start, and ONNX Runtime took "
            f"{session.get_providers()[0]} instead; install the libraries of its release (CUDA, cuDNN, TensorRT) "
            f"and see that they are found (LD_LIBRARY_PATH), or choose another runtime"
        )
    return session


def run_onnx(path: Path, images: Tensor) -> Tensor:
    """Outputs of ONNX Runtime on the CPU."""
    session = open_session(str(path), torch.get_num_threads())
    return torch.from_numpy(session.run([OUTPUT], {INPUT: images.cpu().numpy()})[0])


class OnnxModel(nn.Module):
    """A file in ONNX Runtime on the CPU, to be called as the network that it was made of."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.session = open_session(str(path), torch.get_num_threads())

    def forward(self, images: Tensor) -> Tensor:
        return torch.from_numpy(self.session.run([OUTPUT], {INPUT: images.cpu().float().numpy()})[0])
