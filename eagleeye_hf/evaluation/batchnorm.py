"""Adaptive BatchNorm: recompute the statistics of a network whose weights stay as they are (paper, section 3.3)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from eagleeye_hf.errors import EagleEyeError
from eagleeye_hf.networks.running import Batch, device_of, evaluation_mode, images_of


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


def recalibrate_bn(model: nn.Module, batches: Iterable[Tensor | Batch], momentum: float | None = None) -> nn.Module:
    """Recompute the running statistics of every BatchNorm layer from a few forward passes, without gradients.

    Each layer normalises by the statistics of the batch at hand while its own are collected, as in training. Only
    BatchNorm layers change; modes and momenta are restored, and after an error the statistics too.

    Args:
        batches: images of shape `(N, C, H, W)`, alone or followed by labels, which are not used.
        momentum: None takes the exact mean and variance over all images of all batches, batches weighted by their
            size. A number m in [0, 1) is the paper's eq. 4, `m * old + (1 - m) * batch`, starting from the present
            statistics (PyTorch's own momentum is `1 - m`).
    Returns:
        The same model.
    Raises:
        EagleEyeError: the model has no BatchNorm with running statistics, there is no batch, or `momentum` is out of
            range.
    """
    layers = batch_norms(model)
    if momentum is not None and not 0 <= momentum < 1:
        raise EagleEyeError(f"`momentum` is the weight of the old statistics, in [0, 1), or None; got {momentum}")
    momenta = {layer: layer.momentum for layer in layers}
    before = {layer: {name: b.clone() for name, b in layer.named_buffers(recurse=False)} for layer in layers}
    moments = {layer: _Moments() for layer in layers} if momentum is None else {}
    handles = [layer.register_forward_hook(moments[layer].add) for layer in moments]
    device = device_of(model)
    num_batches = 0
    try:
        with evaluation_mode(model), torch.no_grad():
            for layer in layers:
                layer.train()
                # momentum 1 leaves the batch's own statistics in the buffers, for `_Moments` to read
                layer.momentum = 1.0 if momentum is None else 1 - momentum
            for batch in batches:
                model(images_of(batch).to(device))
                num_batches += 1
        if not num_batches:
            raise EagleEyeError("`batches` is empty; give at least one batch of calibration images")
        for layer, collected in moments.items():
            collected.write(layer, before[layer])
    except BaseException:
        for layer, buffers in before.items():
            for name, buffer in buffers.items():
                getattr(layer, name).copy_(buffer)
        raise
    finally:
        for handle in handles:
            handle.remove()
        for layer, value in momenta.items():
            layer.momentum = value
    return model


class _Moments:
    """Pooled mean and variance of one layer's inputs, in float64, from the statistics of each batch."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: Tensor | None = None
        self.sum_squares: Tensor | None = None
        """Summed squared distance from the mean."""

    def add(self, layer: _BatchNorm, inputs: tuple[Any, ...], output: Any) -> None:
        count = inputs[0].numel() // inputs[0].shape[1]
        assert layer.running_mean is not None
        assert layer.running_var is not None
        mean = layer.running_mean.double()
        sum_squares = layer.running_var.double() * (count - 1)
        if self.mean is None or self.sum_squares is None:
            self.count, self.mean, self.sum_squares = count, mean, sum_squares
            return
        total = self.count + count
        shift = mean - self.mean
        self.sum_squares = self.sum_squares + sum_squares + shift.square() * (self.count * count / total)
        self.mean = self.mean + shift * (count / total)
        self.count = total

    def write(self, layer: _BatchNorm, before: dict[str, Tensor]) -> None:
        assert layer.running_mean is not None
        assert layer.running_var is not None
        if self.mean is None or self.sum_squares is None:  # not used in this forward pass
            layer.running_mean.copy_(before["running_mean"])
            layer.running_var.copy_(before["running_var"])
            return
        layer.running_mean.copy_(self.mean)
        layer.running_var.copy_(self.sum_squares / (self.count - 1))
