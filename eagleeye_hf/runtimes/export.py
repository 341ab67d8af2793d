"""A network for other runtimes: ONNX, or a program of `torch.export`, kept only if they give its outputs."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial, reduce
from pathlib import Path

import torch
import torch.nn.functional as F
from timm.layers import CondConv2d, conv2d_same
from torch import Tensor, nn

from eagleeye_hf.errors import EagleEyeError
from eagleeye_hf.files import sync_path
from eagleeye_hf.networks.description import resolve_input_size
from eagleeye_hf.networks.running import device_of, evaluation_mode
from eagleeye_hf.runtimes.config import OPSET

TOLERANCE = 1e-4
"""Of the outputs, relative to the largest."""


def export_onnx(
    model: nn.Module,
    path: str | Path,
    *,
    opset: int = OPSET,
    input_size: Sequence[int] | None = None,
    batch_size: int | None = None,
    overwrite: bool = False,
) -> Path:
    """Write an ONNX file that gives the model's outputs in ONNX Runtime.

    Args:
        path: to end in `.onnx`; input `images` of shape `(N, C, H, W)`, output `logits`.
        opset: version of ONNX's operators, from 18 on.
        input_size: (channels, height, width), instead of the model's own.
        batch_size: fix the number of images; by default any number can be given.
        overwrite: replace a file that is there.
    Raises:
        EagleEyeError: there is a file, the extra `onnx` is not installed, `path` can't be written, the model can't be
            exported, or ONNX Runtime gives other outputs than the model (by more than 1e-4 of the largest, or what its
            type can resolve). The file is not touched then.
    """
    path = check_path(path, ".onnx", overwrite)
    try:
        from eagleeye_hf.runtimes.onnx_files import write_onnx
        from eagleeye_hf.runtimes.onnx_runtime import run_onnx
    except ImportError as error:
        raise EagleEyeError("exporting to ONNX needs onnx; install it with: pip install eagleeye-hf[onnx]") from error

    def write(images: Tensor, part: Path) -> Callable[[Tensor], Tensor]:
        write_onnx(model, images, part, opset, dynamic=batch_size is None)
        return lambda inputs: run_onnx(part, inputs)

    return _export(model, path, input_size, batch_size, write)


def export_program(
    model: nn.Module,
    path: str | Path,
    *,
    input_size: Sequence[int] | None = None,
    batch_size: int | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a program of `torch.export` (for `torch.export.load`, AOTInductor, ExecuTorch...).

    Args:
        path: to end in `.pt2`.
        input_size, batch_size, overwrite: as for `export_onnx`.
    Raises:
        EagleEyeError: as for `export_onnx`, but for the extra.
    """
    path = check_path(path, ".pt2", overwrite)

    def write(images: Tensor, part: Path) -> Callable[[Tensor], Tensor]:
        shapes = ({0: torch.export.Dim("batch")},) if batch_size is None else None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch about its own parts
            program = torch.export.export(model, (images,), dynamic_shapes=shapes)
            program.example_inputs = None  # they would be pickled
            torch.export.save(program, part)
            return torch.export.load(part).module()

    return _export(model, path, input_size, batch_size, write)


def check_path(path: str | Path, ending: str, overwrite: bool) -> Path:
    """
    Raises:
        EagleEyeError: a file can't be written there, or is there and must not be replaced.
    """
    path = Path(path)
    if path.suffix != ending:
        raise EagleEyeError(f"`path={path}` has to end in {ending}")
    if not path.parent.is_dir():
        raise EagleEyeError(f"`path={path}` can't be written: there is no folder {path.parent}")
    if path.is_dir():
        raise EagleEyeError(f"`path={path}` is a folder; give a file")
    if path.exists() and not overwrite:
        raise EagleEyeError(f"`path={path}` exists; choose another, or allow it to be replaced with `overwrite`")
    return path


def _export(
    model: nn.Module,
    path: Path,
    input_size: Sequence[int] | None,
    batch_size: int | None,
    write: Callable[[Tensor, Path], Callable[[Tensor], Tensor]],
) -> Path:
    size = resolve_input_size(model, tuple(input_size) if input_size else None)
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0, device=device_of(model)))

    def draw(count: int) -> Tensor:
        return torch.randn(count, *size).to(like.device, like.dtype)

    with beside(path) as folder, evaluation_mode(model), torch.no_grad():
        part = folder / path.name
        try:
            with _experts_apart(model) if batch_size is None else nullcontext():
                run = write(draw(batch_size or 2), part)
            found = [(images, run(images).cpu()) for images in map(draw, (batch_size,) if batch_size else (1, 3))]
        except Exception as error:  # the exporters and runtimes raise many kinds
            _raise_full(error, path)
            hint = "" if batch_size else "; give a `batch_size`, if it is the free number of images that fails"
            if like.dtype not in (torch.float32, torch.float16):
                hint = f"; if it is the type {like.dtype} that fails, export `model.float()`"
            raise EagleEyeError(f"`model` can't be exported ({_short(error)}){hint}") from error
        for images, outputs in found:
            _compare(model(images).cpu(), outputs)
        place(part, path)
    return path


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """A folder on the same disk, for what is not finished yet."""
    try:
        folder = tempfile.TemporaryDirectory(dir=path.parent)
    except OSError as error:
        raise EagleEyeError(f"`path={path}` can't be written: {error.strerror}") from error
    with folder as name:
        yield Path(name)


def _raise_full(error: Exception, path: Path) -> None:
    """Tell a full disk as what it is; PyTorch's writer knows only that it wrote too little."""
    full = any(isinstance(e, OSError) and e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) for e in _causes(error))
    if full or shutil.disk_usage(path.parent).free < 1 << 16:
        raise EagleEyeError(f"`path={path}` can't be written: no space left on the disk") from error


def place(part: Path, path: Path) -> None:
    """Onto the disk and into its place, with the permissions that files have here."""
    try:
        probe = part.with_name("probe")
        probe.touch()
        part.chmod(probe.stat().st_mode & 0o777)
        sync_path(part)
        os.replace(part, path)
        sync_path(path.parent)
    except OSError as error:
        raise EagleEyeError(f"`path={path}` can't be written: {error.strerror}") from error


def _compare(expected: Tensor, found: Tensor) -> None:
    tolerance = max(TOLERANCE, 16 * torch.finfo(expected.dtype).eps) if TOLERANCE > 0 else TOLERANCE
    expected, found = expected.double(), found.double()
    worst = float((expected - found).abs().max() / expected.abs().max().clamp_min(1e-6))
    if not worst <= tolerance:
        raise EagleEyeError(f"the exported model gives other outputs (by {worst:.1e} of the largest); it is not kept")


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def _short(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


@contextmanager
def _experts_apart(model: nn.Module) -> Iterator[None]:
    """CondConv runs the images of a batch as groups of one convolution, and their number would be fixed; mixing the
    outputs of the experts instead of their kernels is the same."""
    layers = [module for module in model.modules() if isinstance(module, CondConv2d)]
    for layer in layers:
        layer.forward = partial(_mix_outputs, layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _mix_outputs(layer: CondConv2d, x: Tensor, routing_weights: Tensor) -> Tensor:
    shape = (layer.out_channels, layer.in_channels // layer.groups, *layer.kernel_size)
    convolve = conv2d_same if layer.dynamic_padding else F.conv2d
    outputs = [
        weight[:, None, None, None]
        * convolve(x, kernel.view(shape), None, layer.stride, layer.padding, layer.dilation, layer.groups)
        for weight, kernel in zip(routing_weights.unbind(1), layer.weight.unbind(), strict=True)
    ]
    if layer.bias is not None:
        outputs.append((routing_weights @ layer.bias)[:, :, None, None])
    return reduce(torch.add, outputs)
