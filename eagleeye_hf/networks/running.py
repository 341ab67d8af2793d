"""Running a network on batches, whatever form they have: in evaluation mode and back, on its own device and type."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eagleeye_hf.errors import EagleEyeError

Batch = tuple[Tensor, Tensor]
"""Images of shape `(N, C, H, W)` and labels of shape `(N,)`."""
AnyBatch = Tensor | Batch | Mapping[str, Any]
"""Images alone, with labels, or as transformers has them: `{"pixel_values": ..., "labels": ...}`."""

Network = TypeVar("Network", bound=nn.Module)

HALF = (torch.float16, torch.bfloat16)
IMAGES, LABELS = ("pixel_values", "images", "image"), ("labels", "label")
"""Names in a batch that is a dictionary."""


def scale_images(images: Tensor, size: int | None) -> Tensor:
    """Images scaled to `size` pixels a side: as decoding at that size gives them, but for what resampling twice loses.

    Args:
        images: of shape `(N, C, H, W)`.
        size: None: as they are.
    """
    if size is None or images.shape[-2:] == (size, size):
        return images
    return F.interpolate(images, size=(size, size), mode="bicubic", antialias=True)


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


def dtype_of(model: nn.Module) -> torch.dtype:
    """The floating-point type of its first parameter; float32 where it has none."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def half_of(model: nn.Module) -> torch.dtype | None:
    """The half precision in which some of a network is, if any."""
    return next((t.dtype for t in (*model.parameters(), *model.buffers()) if t.dtype in HALF), None)


def in_float32(model: nn.Module) -> nn.Module:
    """The network itself, or a copy where some of it is in half precision."""
    return model if half_of(model) is None else copy.deepcopy(model).float()


def images_of(batch: AnyBatch) -> Tensor:
    """The images of a batch, which may be followed by labels."""
    if isinstance(batch, Tensor):
        return batch
    return _entry(batch, IMAGES) if isinstance(batch, Mapping) else batch[0]


def labels_of(batch: AnyBatch) -> Tensor:
    """The labels of a batch.

    Raises:
        EagleEyeError: it has none.
    """
    if isinstance(batch, Mapping):
        return _entry(batch, LABELS)
    if isinstance(batch, Tensor):
        raise EagleEyeError("`batches` hold images alone; labels are needed here: give (images, labels)")
    return batch[1]


def _entry(batch: Mapping[str, Any], names: tuple[str, ...]) -> Tensor:
    for name in names:
        if name in batch:
            return batch[name]
    raise EagleEyeError(f"a batch has {', '.join(map(str, batch))}, but none of {', '.join(names)}")


def run_model(model: nn.Module, images: Tensor) -> Tensor:
    """The network's outputs on images, which are brought to its device and type first.

    Networks of transformers give an object with `logits`, some give a tuple whose first part are the outputs.
    """
    device = device_of(model)
    if torch.is_autocast_enabled(device.type) or not images.is_floating_point():
        images = images.to(device)
    else:
        images = images.to(device, dtype_of(model))
    outputs = model(images)
    if isinstance(outputs, Mapping):
        outputs = outputs["logits"]
    return outputs[0] if isinstance(outputs, (tuple, list)) else outputs


def join_single(batches: Iterable[AnyBatch]) -> Iterator[Tensor]:
    """The images of each batch; a last single image joins the batch before, for no statistics are of one image."""
    before: Tensor | None = None
    for batch in batches:
        images = images_of(batch)
        if before is not None:
            if len(images) == 1:
                images = torch.cat([before, images])
            else:
                yield before
        before = images
    if before is not None:
        yield before


def channels_last(network: Network) -> Network:
    """The network, in place, its weights of four dimensions in that memory format; there is none for five."""
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.ndim == 4:
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
    return network


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that it was told."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def bytes_of(tensor: Tensor) -> bytes:
    """Its values as they lie in memory, of any type and on any device; to be hashed."""
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def to_float64(tensor: Tensor) -> Tensor:
    """In float64; on the CPU where the device has no such type, as Apple's."""
    return tensor.cpu().double() if tensor.device.type == "mps" else tensor.double()
