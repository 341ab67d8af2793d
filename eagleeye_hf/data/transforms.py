"""From an encoded image to the tensor that a model wants."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any

from PIL import Image, ImageOps
from timm.data.config import resolve_data_config
from timm.data.transforms_factory import create_transform
from torch import Tensor, nn
from torchvision import transforms

Transform = Callable[[Image.Image], Tensor]
SMALL_IMAGE = 64
"""Up to this size in pixels, training crops shift by a few pixels instead of zooming, as is usual on CIFAR."""


def build_transforms(model: nn.Module, hflip: bool = True) -> tuple[Transform, Transform]:
    """(training, evaluation) transforms from the model's own `pretrained_cfg`."""
    config = resolve_data_config(model=model)
    size = config["input_size"][-2:]
    evaluation = create_transform(**config)
    if max(size) > SMALL_IMAGE:
        return create_transform(**config, is_training=True, hflip=0.5 * hflip), evaluation
    interpolation = transforms.InterpolationMode(config["interpolation"].replace("random", "bilinear"))
    training = [
        transforms.Resize(size, interpolation),
        transforms.RandomCrop(size, padding=size[0] // 8),
        transforms.RandomHorizontalFlip(0.5 * hflip),
        transforms.ToTensor(),
        transforms.Normalize(config["mean"], config["std"]),
    ]
    return transforms.Compose(training), evaluation


def decode_image(value: Any) -> Image.Image:
    """Decode `{"bytes", "path"}` (or pass on an image), turn it upright, and convert it to RGB."""
    if isinstance(value, Mapping):
        source = io.BytesIO(value["bytes"]) if value.get("bytes") is not None else value["path"]
        value = Image.open(source)
    if value.mode in ("I;16", "I;16B", "I"):  # 16-bit gray: PIL would clip instead of scaling
        value = value.convert("I").point(lambda level: level / 257).convert("L")
    return ImageOps.exif_transpose(value).convert("RGB")
