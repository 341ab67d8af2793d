"""ONNX files, written and run. The only module that needs onnx and ONNX Runtime, from the extra `onnx`."""

from __future__ import annotations

import logging
import platform
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import onnxruntime
import onnxscript  # noqa: F401  torch needs it to export
import torch
from torch import Tensor, nn

from eagleeye_hf.networks.running import device_of
from eagleeye_hf.runtimes.config import OPSET

INPUT, OUTPUT = "images", "logits"


def write_onnx(model: nn.Module, images: Tensor, path: Path, opset: int, dynamic: bool) -> None:
    """Export for inputs like `images`; with `dynamic` for any number of them."""
    with _quiet():
        program = torch.onnx.export(
            model,
            (images,),
            dynamo=True,
            opset_version=opset,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: torch.export.Dim("batch")},) if dynamic else None,
            verbose=False,
        )
        assert program is not None
        program.save(str(path), external_data=False)


def run_onnx(path: Path, images: Tensor) -> Tensor:
    """Outputs of ONNX Runtime on the CPU."""
    return torch.from_numpy(_session(path).run([OUTPUT], {INPUT: images.cpu().numpy()})[0])


class OnnxRuntime:
    """Runs the network in ONNX Runtime, on as many threads of the CPU as torch has."""

    name = "onnxruntime"

    def load(self, model: nn.Module, images: Tensor, folder: Path) -> Callable[[], object]:
        path = folder / f"{len(list(folder.iterdir()))}.onnx"
        write_onnx(model, images.to(device_of(model)), path, OPSET, dynamic=False)
        session, inputs = _session(path), {INPUT: images.cpu().numpy()}
        return lambda: session.run([OUTPUT], inputs)

    def describe(self, model: nn.Module) -> tuple[str, int]:
        return f"CPU ({platform.machine()})", torch.get_num_threads()


def _session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns of its own parts."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
