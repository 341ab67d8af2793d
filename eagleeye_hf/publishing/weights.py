"""Tensors of a checkpoint: safetensors only, compared with the model by their header before any is read."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from functools import reduce
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from eagleeye_hf.errors import EagleEyeError
from eagleeye_hf.publishing.config import CONFIG, WEIGHTS

MAX_HEADER_BYTES = 16 << 20
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "BOOL": torch.bool,
}
"""What networks consist of, by its name in the header."""

Header = Mapping[str, tuple[tuple[int, ...], str]]
"""Shape and type of each tensor."""


def save_weights(model: nn.Module, path: Path) -> None:
    """Write all parameters and buffers."""
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
    save_file(tensors, path, metadata={"format": "pt"})


def load_weights(model: nn.Module, folder: Path) -> nn.Module:
    """Give a model, whose parameters may be empty, the tensors of a checkpoint.

    Returns:
        The model, in the widest floating-point type of the file.
    Raises:
        EagleEyeError: the file is missing or damaged, or its tensors are not exactly those of the model.
    """
    path = folder / WEIGHTS
    header = check_weights(model, folder)
    dtype = widest_type(DTYPES[kind] for _, kind in header.values())
    expected = model.state_dict()
    types = {name: dtype if tensor.is_floating_point() else tensor.dtype for name, tensor in expected.items()}
    try:
        with safe_open(path, "pt") as file:
            # copies: what lies in the file may not be aligned, and convolutions then sum in another order
            tensors = {name: file.get_tensor(name).to(types[name], copy=True) for name in header}
    except (SafetensorError, OSError, ValueError, OverflowError) as error:
        raise EagleEyeError(f"{path} is no safetensors file: {error}") from error
    model.load_state_dict(tensors, assign=True)
    return model.to(dtype)


def check_weights(model: nn.Module, folder: Path) -> Header:
    """Compare the header of a checkpoint's weights with a model, which may be empty.

    Raises:
        EagleEyeError: the file is missing or damaged, or its tensors are not exactly those of the model.
    """
    path = folder / WEIGHTS
    if not path.is_file():
        raise EagleEyeError(f"{folder} has no {WEIGHTS}; the checkpoint is damaged")
    try:
        _check_header_size(path)
        with safe_open(path, "pt") as file:
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            header = {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in parts.items()}
    except (SafetensorError, OSError, ValueError, OverflowError) as error:
        if isinstance(error, EagleEyeError):
            raise
        raise EagleEyeError(f"{path} is no safetensors file: {error}") from error
    _compare(path, model.state_dict(), header)
    return header


def check_finite(model: nn.Module) -> None:
    """Refuse to go on with tensors that hold NaN or infinite values."""
    broken = [
        name
        for name, tensor in model.state_dict().items()
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all())
    ]
    if broken:
        raise EagleEyeError(
            f"`model` holds NaN or infinite values in {', '.join(broken[:5])}"
            f"{f' and {len(broken) - 5} more' if len(broken) > 5 else ''}; training diverged, or statistics overflowed"
        )


def widest_type(types: Iterable[torch.dtype]) -> torch.dtype:
    """The floating-point type that holds the values of all these; others do not count."""
    floating = [kind for kind in types if kind.is_floating_point]
    return reduce(torch.promote_types, floating) if floating else torch.float32


def _check_header_size(path: Path) -> None:
    with path.open("rb") as file:
        start = file.read(8)
    size = struct.unpack("<Q", start)[0] if len(start) == 8 else -1
    if not 0 < size <= min(MAX_HEADER_BYTES, path.stat().st_size):
        raise EagleEyeError(f"{path} is no safetensors file: its header can't be {size} bytes long")


def _compare(path: Path, expected: Mapping[str, Tensor], found: Header) -> None:
    problems = [f"{name} is missing" for name in expected if name not in found]
    problems += [f"{name[:100]} is unknown" for name in found if name not in expected]
    for name, (shape, dtype) in found.items():
        if name not in expected:
            continue
        if shape != tuple(expected[name].shape):
            problems.append(f"{name} has shape {shape}, not {tuple(expected[name].shape)}")
        kind = DTYPES.get(dtype)
        if kind is None or kind.is_floating_point != expected[name].dtype.is_floating_point:
            problems.append(f"{name} is of type {dtype}, not {str(expected[name].dtype).removeprefix('torch.')}")
    if problems:
        raise EagleEyeError(f"the tensors of {path} don't fit {CONFIG}: {'; '.join(problems[:5])}")
