"""From a decoded image to the pixels that a model wants."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from timm.data.auto_augment import rand_augment_transform
from timm.data.config import resolve_data_config
from timm.data.transforms_factory import create_transform
from torch import Tensor, nn
from torchvision import transforms

from eagleeye_hf.data.fast import FastTransform, find_fast
from eagleeye_hf.errors import EagleEyeError
from eagleeye_hf.networks.description import describe_model, unwrap_model

Transform = Callable[[Image.Image], Any]
"""To bytes of shape `(channels, height, width)`, a tensor or (of older timm) an array."""
SMALL_IMAGE = 64
"""Up to this size in pixels, training crops shift by a few pixels instead of zooming, as is usual on CIFAR."""


@dataclass(frozen=True, kw_only=True)
class SmallCrop:
    """Training images of a few pixels: resized, shifted at random, mirrored at random."""

    size: tuple[int, int]
    resize: Callable[[Image.Image], Image.Image]
    hflip: bool

    @property
    def padding(self) -> int:
        """Pixels by which a crop may shift, each way."""
        return self.size[0] // 8


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How an image becomes a model's input. Pixels stay bytes until a batch is whole: less to move, faster to scale."""

    transform: Transform
    fast: FastTransform | None = None
    """The same from an image that is opened but not decoded, where there is a faster way."""
    mode: str
    """PIL's name of the channels."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    small: SmallCrop | None = None
    """The same as `transform` where that is only a shift and a mirror; else None."""
    identity: str = ""
    """Tells from others how images are seen, whichever library does it."""

    def normalize(self, pixels: Tensor, device: torch.device | None = None) -> Tensor:
        """Bytes of shape `(N, channels, height, width)` to what the model was trained on, there."""
        pixels = pixels.to(device, non_blocking=True).permute(0, 2, 3, 1)
        num, height, width, channels = pixels.shape
        rows = pixels.reshape(num * height, width * channels)  # long rows, for the CPU is slow with three channels
        mean, std = _levels(self.mean, self.std, width, pixels.device)
        return rows.float().sub_(mean).div_(std).view(pixels.shape).permute(0, 3, 1, 2)


@functools.lru_cache(maxsize=16)
def _levels(mean: tuple[float, ...], std: tuple[float, ...], width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Those of a row of bytes, made once: copying them to a GPU would wait for it in every step."""
    first, second = ((255 * torch.tensor(value)).repeat(width).to(device) for value in (mean, std))
    return first, second


def build_preprocessing(
    model: nn.Module, hflip: bool = True, augment: str | None = None, color_jitter: float = 0.0
) -> tuple[Preprocessing, Preprocessing]:
    """Preprocessing of training and of other images, from its own `pretrained_cfg`, with timm's transforms.

    Args:
        hflip: mirror training images at random.
        augment: timm's description of RandAugment, AutoAugment or AugMix, as `rand-m9-mstd0.5`; instead of jitter.
        color_jitter: brightness, contrast and saturation of training images change by up to this part.
    Raises:
        EagleEyeError: `augment` is not understood, or the model takes neither gray nor colour images.
    """
    described = describe_model(model)
    config = resolve_data_config(model=unwrap_model(model))
    config |= {"input_size": described.input_size, "mean": described.mean, "std": described.std}
    size = described.image_size
    if described.channels not in (1, 3):
        raise EagleEyeError(
            f"the model takes images of {described.channels} channels; those of a dataset are gray or in colour, 1 or "
            "3. Give batches of your own, or build it with `in_chans`"
        )
    mode = "L" if described.channels == 1 else "RGB"
    common: dict[str, Any] = {"mode": mode, "mean": described.mean, "std": described.std}
    told = {name: config[name] for name in ("crop_pct", "crop_mode", "interpolation")} | common
    transform = create_transform(**config, use_prefetcher=True)
    evaluation = Preprocessing(
        transform=transform, fast=find_fast(transform, mode, size), identity=f"{size} {told}", **common
    )
    small = None
    try:
        if max(size) > SMALL_IMAGE:
            options = {"is_training": True, "hflip": 0.5 * hflip, "auto_augment": augment, "use_prefetcher": True}
            transform = create_transform(**config, **options, color_jitter=color_jitter or None)  # timm's own is 0.4
        else:
            interpolation = transforms.InterpolationMode(config["interpolation"].replace("random", "bilinear"))
            small = SmallCrop(size=size, resize=transforms.Resize(size, interpolation), hflip=hflip)
            transform = _small_transform(small, augment, config["mean"], color_jitter)
    except (AssertionError, KeyError, ValueError, IndexError) as error:
        raise EagleEyeError(
            f"`augment={augment}` is not understood by timm ({error}); an example is rand-m9-mstd0.5"
        ) from error
    plain = not augment and not color_jitter
    fast = find_fast(transform, mode, size) if plain else None
    return Preprocessing(transform=transform, fast=fast, small=small if plain else None, **common), evaluation


def _small_transform(small: SmallCrop, augment: str | None, mean: tuple[float, ...], color_jitter: float) -> Transform:
    steps = [small.resize, transforms.RandomCrop(small.size, padding=small.padding)]
    steps.append(transforms.RandomHorizontalFlip(0.5 * small.hflip))
    if augment:
        fill = tuple(min(255, round(255 * level)) for level in mean)
        steps.append(rand_augment_transform(augment, {"translate_const": int(small.size[0] * 0.45), "img_mean": fill}))
    elif color_jitter:
        steps.append(transforms.ColorJitter(color_jitter, color_jitter, color_jitter))
    return transforms.Compose([*steps, transforms.PILToTensor()])
