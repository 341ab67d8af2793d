"""Where networks are to run, and versions that exports may have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from eagleeye_hf.configs import Within, check_fields
from eagleeye_hf.errors import EagleEyeError

OPSET = 18
"""Of ONNX's operators, by default."""
OPSETS = "[18, 23]"
"""Those in which PyTorch can export, as an interval."""

RuntimeName = Literal["auto", "torch", "compile", "onnxruntime", "onnxruntime-cuda", "tensorrt", "openvino"]
QUANTIZING = ("onnxruntime", "openvino")
"""Runtimes that run int8 networks here."""


@dataclass(frozen=True, kw_only=True)
class LatencyConfig:
    """Where milliseconds are measured."""

    runtime: RuntimeName = "auto"
    """What runs the network where it is used: ONNX Runtime (on the CPU, by its CUDA or its TensorRT execution
    provider), OpenVINO, PyTorch as it is or `torch.compile`; auto: ONNX Runtime on a CPU where it is installed, else
    PyTorch."""
    threads: Annotated[int, Within("[1, inf)")] | None = None
    """Threads of the CPU that it may use there; by default as many as PyTorch uses here."""
    latency_batch: Annotated[int, Within("[1, inf)")] = 1
    """Images of one forward pass."""
    int8: bool = False
    """Quantise to 8-bit integers, by ONNX Runtime's tools: milliseconds of a budget are those of the quantised network,
    and accuracy is measured of it, too."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.int8 and self.runtime not in ("auto", *QUANTIZING):
            raise EagleEyeError(
                f"`int8` is for runtime {' or '.join(QUANTIZING)}; got `runtime={self.runtime}`: choose one of these"
            )
