"""What a network says of itself, read from its tensors before its config."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from timm.data.config import resolve_data_config
from torch import nn

from eagleeye_hf.errors import EagleEyeError
from eagleeye_hf.networks.running import device_of

WRAPPED = ("_orig_mod", "module")
"""Where wrappers keep the network: `torch.compile`; `DataParallel`, `DistributedDataParallel` and `AveragedModel`."""
WRAPPERS = {"OptimizedModule", "DataParallel", "DistributedDataParallel", "AveragedModel", "ModelEmaV3"}
UNFOLDED = (4, 16)
"""Input channels that a first layer reads per channel of the image, where a stem folds pixels into channels."""


@dataclass(frozen=True, kw_only=True)
class Description:
    """Of one network."""

    channels: int
    """Of an input image."""
    image_size: tuple[int, int]
    """Height and width in pixels."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_classes: int | None
    """Outputs; None where the network doesn't tell."""
    dtype: torch.dtype
    device: torch.device

    @property
    def input_size(self) -> tuple[int, int, int]:
        return (self.channels, *self.image_size)


def unwrap_model(model: nn.Module) -> nn.Module:
    """The network inside `DataParallel`, DDP, `torch.compile` and averaging."""
    while type(model).__name__ in WRAPPERS:
        model = next(getattr(model, name) for name in WRAPPED if hasattr(model, name))
    return model


def describe_model(model: nn.Module) -> Description:
    """Read what a network takes and gives."""
    model = unwrap_model(model)
    config = resolve_data_config(model=model, verbose=False)
    channels, height, width = _config_size(model)
    channels = _channels_of(model, channels)
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    return Description(
        channels=channels,
        image_size=(height, width),
        mean=_per_channel(config["mean"], channels),
        std=_per_channel(config["std"], channels),
        num_classes=_outputs_of(model),
        dtype=dtype,
        device=device_of(model),
    )


def resolve_input_size(model: nn.Module, input_size: Sequence[int] | None) -> tuple[int, int, int]:
    """`input_size`, or the model's own.

    Raises:
        EagleEyeError: it is no size of an image.
    """
    size = tuple(input_size) if input_size else describe_input(model)
    if len(size) != 3 or not all(isinstance(n, int) and n > 0 for n in size):
        raise EagleEyeError(f"`input_size` is (channels, height, width), three positive integers; got {input_size}")
    return size


def describe_input(model: nn.Module) -> tuple[int, int, int]:
    """Channels, height and width of the images that a network takes."""
    model = unwrap_model(model)
    channels, height, width = _config_size(model)
    return _channels_of(model, channels), height, width


def _config_size(model: nn.Module) -> tuple[int, int, int]:
    config: Any = getattr(model, "pretrained_cfg", None) or {}
    channels, height, width = config.get("input_size") or (3, 224, 224)
    return channels, height, width


def _channels_of(model: nn.Module, told: int) -> int:
    """What the first convolution reads, unless that is what its config tells, folded."""
    config: Any = getattr(model, "pretrained_cfg", None) or {}
    name = config.get("first_conv")
    names = [name] if isinstance(name, str) else list(name or ())
    weights = dict(model.named_parameters())
    for name in names:
        weight = weights.get(f"{name}.weight")
        if weight is None or weight.ndim < 3:
            continue
        found = weight.shape[1] * int(getattr(model.get_submodule(name), "groups", 1))
        return told if found in [told * fold for fold in UNFOLDED] else found
    return told


def _outputs_of(model: nn.Module) -> int | None:
    """What the classifier gives, by its weight; else what the network's `num_classes` tells."""
    classifier: Any = model.get_classifier() if hasattr(model, "get_classifier") else None  # type: ignore[operator]
    weight = getattr(classifier, "weight", None)
    if isinstance(classifier, (nn.Linear, nn.Conv2d)) and weight is not None:
        return len(weight)
    told = getattr(model, "num_classes", None)
    return told if isinstance(told, int) else None


def _per_channel(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """One value per channel of the image: the mean of three for a gray one, the first again for more."""
    values = tuple(values)
    if len(values) == channels:
        return values
    return (sum(values) / len(values),) * channels
