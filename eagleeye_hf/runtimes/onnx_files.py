"""ONNX graphs, written by PyTorch's exporter. Needs onnx and onnxscript, from the extra `onnx`."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnxscript  # noqa: F401  torch needs it to export
import torch
from torch import Tensor, nn

from eagleeye_hf.networks.running import evaluation_mode
from eagleeye_hf.runtimes.config import OPSET

INPUT, OUTPUT = "images", "logits"


def write_onnx(model: nn.Module, images: Tensor, path: Path, opset: int, dynamic: bool) -> None:
    """Export for inputs like `images`; with `dynamic` for any number of them."""
    _export(model, images, opset, dynamic).save(str(path), external_data=False)


def export_proto(model: nn.Module, images: Tensor, dynamic: bool = False) -> Any:
    """The same as an `onnx.ModelProto`."""
    with evaluation_mode(model):
        return _export(model, images, OPSET, dynamic).model_proto


def _export(model: nn.Module, images: Tensor, opset: int, dynamic: bool) -> Any:
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
    return program


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
