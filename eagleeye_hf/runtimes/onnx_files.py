"""ONNX files: written, run and timed. The only module that needs onnx and ONNX Runtime, from the extra `onnx`."""

from __future__ import annotations

import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import onnxruntime
import onnxscript  # noqa: F401  torch needs it to export
import torch
from torch import Tensor, nn

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


def measure_onnx_latency(models: Sequence[nn.Module], input_size: Sequence[int], rounds: int = 20) -> list[float]:
    """Median milliseconds per model for one image in ONNX Runtime, on as many CPU threads as torch has.

    The models take turns, so that a machine that slows down slows them all.
    """
    images = torch.randn(1, *input_size)
    times: list[list[float]] = [[] for _ in models]
    with tempfile.TemporaryDirectory() as folder:
        sessions = []
        for number, model in enumerate(models):
            path = Path(folder) / f"{number}.onnx"
            write_onnx(model, images.to(next(model.parameters()).device), path, 18, dynamic=False)
            sessions.append(_session(path))
        for round_number in range(rounds + 3):
            for session, own in zip(sessions, times, strict=True):
                started = time.perf_counter()
                session.run([OUTPUT], {INPUT: images.numpy()})
                if round_number >= 3:
                    own.append((time.perf_counter() - started) * 1000)
    return [statistics.median(own) for own in times]


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
