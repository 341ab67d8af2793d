"""Running a network on batches: in evaluation mode and back, on its own device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

Batch = tuple[Tensor, Tensor]
"""Images of shape `(N, C, H, W)` and labels of shape `(N,)`."""


@contextmanager
def evaluation_mode(*models: nn.Module) -> Iterator[None]:
    """`model.eval()`, and afterwards every module in the mode that it had."""
    modes = {module: module.training for model in models for module in model.modules()}
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def device_of(model: nn.Module) -> torch.device:
    """Where the network lives: the device of its first parameter, or buffer; the CPU where it has neither."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def images_of(batch: Tensor | Batch) -> Tensor:
    """The images of a batch, which may be followed by labels."""
    return batch if isinstance(batch, Tensor) else batch[0]


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
