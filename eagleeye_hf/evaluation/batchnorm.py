"""Adaptive BatchNorm: recompute the statistics of a network whose weights stay as they are (paper, section 3.3)."""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from eagleeye_hf.errors import EagleEyeError, NotFiniteError
from eagleeye_hf.networks.running import (
    HALF,
    AnyBatch,
    device_of,
    dtype_of,
    evaluation_mode,
    join_single,
    run_model,
    to_float64,
)
from eagleeye_hf.processes import gather_parts

if TYPE_CHECKING:
    from accelerate import Accelerator


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """The layers whose statistics can be recomputed.

    Raises:
        EagleEyeError: there is none.
    """
    layers = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    if not layers:
        raise EagleEyeError(
            f"`model` ({type(model).__name__}) has no BatchNorm layer with running statistics, so there is nothing to "
            "recompute; EagleEye needs a BatchNorm network"
        )
    return layers


def warn_of_frozen(model: nn.Module) -> None:
    """Say which layers keep their statistics: those that look like BatchNorm and are none, as timm's frozen ones."""
    frozen = [
        name
        for name, module in model.named_modules()
        if not isinstance(module, _BatchNorm) and isinstance(getattr(module, "running_mean", None), Tensor)
    ]
    if frozen:
        warnings.warn(
            f"{len(frozen)} frozen BatchNorm layers ({', '.join(frozen[:3])}{', ...' if len(frozen) > 3 else ''}) keep "
            "their statistics, which belong to another network once channels are removed; thaw them first, with "
            "`timm.utils.unfreeze`",
            stacklevel=3,
        )


def recalibrate_bn(
    model: nn.Module,
    batches: Iterable[AnyBatch],
    momentum: float | None = None,
    accelerator: Accelerator | None = None,
) -> nn.Module:
    """Recompute the running statistics of every BatchNorm layer from a few forward passes, without gradients.

    Each layer normalises by the statistics of the batch at hand while its own are collected, as in training. Only
    BatchNorm layers change; modes and momenta are restored, and after an error the statistics too. A network in half
    precision computes them in float32.

    Args:
        batches: images of shape `(N, C, H, W)`, alone or with labels, which are not used. A last single image joins the
            batch before.
        momentum: None takes the exact mean and variance over all images of all batches, batches weighted by their
            size. A number m in [0, 1) is the paper's eq. 4, `m * old + (1 - m) * batch`, starting from the present
            statistics (PyTorch's own momentum is `1 - m`), or from those of a fresh layer where they are not finite.
        accelerator: where given, `batches` are this process's part, maybe none, and the statistics are those of all
            processes' batches; `momentum` has to be None.
    Returns:
        The same model.
    Raises:
        EagleEyeError: the model has no BatchNorm with running statistics, there is no batch, `momentum` is out of
            range, a batch is a single image where that tells nothing, or images or statistics are not finite.
    """
    layers = batch_norms(model)
    warn_of_frozen(model)
    if momentum is not None and not 0 <= momentum < 1:
        raise EagleEyeError(f"`momentum` is the weight of the old statistics, in [0, 1), or None; got {momentum}")
    if momentum is not None and accelerator is not None:
        raise EagleEyeError(
            f"`momentum={momentum}` goes by the order of batches, which processes can't share; give None"
        )
    if dtype_of(model) in HALF and not torch.is_autocast_enabled(device_of(model).type):
        precise = recalibrate_bn(copy.deepcopy(model).float(), batches, momentum, accelerator)
        with _restored_on_error(layers):
            for layer, same in zip(layers, batch_norms(precise), strict=True):
                for name, buffer in same.named_buffers(recurse=False):
                    getattr(layer, name).copy_(buffer)
            check_statistics(model, layers)  # again: float16 ends at 65,504
        return model
    with _restored_on_error(layers):
        _collect(model, layers, batches, momentum, accelerator)
        check_statistics(model, layers)
    return model


def _collect(
    model: nn.Module,
    layers: Sequence[_BatchNorm],
    batches: Iterable[AnyBatch],
    momentum: float | None,
    accelerator: Accelerator | None,
) -> None:
    moments = {layer: _Moments(layer) for layer in layers} if momentum is None else {}
    handles = [layer.register_forward_hook(moments[layer].add) for layer in moments]
    momenta = {layer: layer.momentum for layer in layers}

    def see() -> _Seen:
        finite: Tensor | None = None
        for images in join_single(batches):
            here = images.isfinite().all()
            finite = here if finite is None else finite.to(here.device) & here
            _run(model, images)
        told = [moments[layer].told() for layer in moments] if accelerator is not None else []
        return finite is not None, finite is None or bool(finite), told

    try:
        with evaluation_mode(model), unsynchronised(layers), torch.no_grad():
            for layer in layers:
                layer.training = True  # not `train()`: some layers hold an activation or dropout
                # momentum 1 leaves the batch's own statistics in the buffers, for `_Moments` to read
                layer.momentum = 1.0 if momentum is None else 1 - momentum
                _reset(layer, only_broken=momentum is not None)
            parts = gather_parts(accelerator, see)
            if not any(seen for seen, _, _ in parts):
                raise EagleEyeError("`batches` is empty; give at least one batch of calibration images")
            if not all(finite for _, finite, _ in parts):
                raise EagleEyeError("`batches` hold images with values that are not finite numbers")
            if len(parts) > 1:
                for place, collected in enumerate(moments.values()):
                    collected.join([told[place] for _, _, told in parts])
            for collected in moments.values():
                collected.write()
    finally:
        for handle in handles:
            handle.remove()
        for layer, value in momenta.items():
            layer.momentum = value


def _run(model: nn.Module, images: Tensor) -> None:
    try:
        run_model(model, images)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise EagleEyeError(
            f"`batches` have one of {len(images)} image, which tells no variance where a map is 1 x 1; "
            "give batches of at least 2"
        ) from error


def _reset(layer: _BatchNorm, only_broken: bool) -> None:
    """Those of a fresh layer, for what is not finite survives any average."""
    assert layer.running_mean is not None
    assert layer.running_var is not None
    if not only_broken or not (layer.running_mean.isfinite().all() and layer.running_var.isfinite().all()):
        layer.running_mean.zero_()
        layer.running_var.fill_(1)


def check_statistics(model: nn.Module, layers: Sequence[_BatchNorm]) -> None:
    """Raise where statistics are not finite numbers."""
    statistics = [t for layer in layers for t in (layer.running_mean, layer.running_var) if t is not None]
    if torch.stack([tensor.isfinite().all() for tensor in statistics]).all():
        return
    names = {id(module): name for name, module in model.named_modules()}
    for layer in layers:
        if not (layer.running_mean.isfinite().all() and layer.running_var.isfinite().all()):  # type: ignore[union-attr]
            raise NotFiniteError(
                f"the statistics of {names[id(layer)]} are not finite numbers on these images; check the weights of "
                "the layers before it, and the images' mean and standard deviation"
            )


@contextmanager
def _restored_on_error(layers: Sequence[_BatchNorm]) -> Iterator[None]:
    before = [(layer, {name: b.clone() for name, b in layer.named_buffers(recurse=False)}) for layer in layers]
    try:
        yield
    except BaseException:
        for layer, buffers in before:
            for name, buffer in buffers.items():
                getattr(layer, name).copy_(buffer)
        raise


class _Unsynchronised:
    """How many blocks of `unsynchronised` are running in this process, and what SyncBatchNorm does outside of them."""

    lock = threading.Lock()
    count = 0
    forward = nn.SyncBatchNorm.forward


@contextmanager
def unsynchronised(layers: Sequence[_BatchNorm]) -> Iterator[None]:
    """SyncBatchNorm, also below timm's layers, waits for other processes, which may be busy with another network."""
    if not any(isinstance(layer, nn.SyncBatchNorm) for layer in layers):
        yield
        return
    with _Unsynchronised.lock:
        _Unsynchronised.count += 1
        nn.SyncBatchNorm.forward = _BatchNorm.forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        with _Unsynchronised.lock:
            _Unsynchronised.count -= 1
            if not _Unsynchronised.count:
                nn.SyncBatchNorm.forward = _Unsynchronised.forward  # type: ignore[method-assign]


_Told = tuple[int, Tensor, Tensor, int] | None
"""Count, mean and summed squares of a layer, and of how many batches; None where it was not used."""
_Seen = tuple[bool, bool, list[_Told]]
"""Whether there were images, whether they were finite, and the moments of each layer."""


class _Moments:
    """Pooled mean and variance of one layer's inputs, in float64, from the statistics of each batch."""

    def __init__(self, layer: _BatchNorm) -> None:
        assert layer.running_mean is not None
        assert layer.running_var is not None
        self.before = layer.running_mean.clone(), layer.running_var.clone()
        self.statistics = layer.running_mean, layer.running_var
        self.tracked = layer.num_batches_tracked
        self.count = self.batches = 0
        self.mean: Tensor | None = None
        self.sum_squares: Tensor | None = None
        """Summed squared distance from the mean."""

    def add(self, layer: _BatchNorm, inputs: tuple[Any, ...], output: Any) -> None:
        count = inputs[0].numel() // inputs[0].shape[1]
        mean, variance = map(to_float64, self.statistics)
        self._pool(count, mean, variance * (count - 1))
        self.batches += 1

    def told(self) -> _Told:
        """For other processes."""
        if self.mean is None or self.sum_squares is None:
            return None
        return self.count, self.mean.cpu(), self.sum_squares.cpu(), self.batches

    def join(self, parts: Sequence[_Told]) -> None:
        """Those of all processes instead of this one's."""
        self.count, self.mean, self.sum_squares = 0, None, None
        if self.tracked is not None:
            self.tracked += sum(part[3] for part in parts if part is not None) - self.batches
        for part in parts:
            if part is not None:
                self._pool(*part[:3])

    def _pool(self, count: int, mean: Tensor, sum_squares: Tensor) -> None:
        if self.mean is None or self.sum_squares is None:
            self.count, self.mean, self.sum_squares = count, mean, sum_squares
            return
        total = self.count + count
        shift = mean - self.mean
        self.sum_squares = self.sum_squares + sum_squares + shift.square() * (self.count * count / total)
        self.mean = self.mean + shift * (count / total)
        self.count = total

    def write(self) -> None:
        mean, variance = self.statistics
        if self.mean is None or self.sum_squares is None:  # not used in this forward pass
            mean.copy_(self.before[0])
            variance.copy_(self.before[1])
            return
        mean.copy_(self.mean)
        variance.copy_(self.sum_squares / (self.count - 1))
