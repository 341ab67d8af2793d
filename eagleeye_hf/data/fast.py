"""From a JPEG's bytes to the pixels that a model wants, without PIL's images in between: half of the time.

torchvision decodes with the same library as PIL does, to the same pixels; PyTorch resizes bytes by the same rule, to
within a level or two. What is no plain JPEG goes the way of `decode_image`.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch import Tensor
from torchvision import transforms
from torchvision.io import ImageReadMode, decode_jpeg

MODES = {"bilinear": "bilinear", "bicubic": "bicubic"}
"""Ways to resize that PyTorch has for bytes."""
ORIENTATION = 0x0112
"""EXIF's tag of how the camera was held."""
KEPT_DETAIL = 2
"""Pixels per side and wanted pixel down to which decoding may leave out detail, of large photographs."""


@dataclass(frozen=True, kw_only=True)
class FastTransform:
    """A crop, a resize and maybe a mirror, drawn as timm's and torchvision's transforms draw them."""

    mode: str
    size: tuple[int, int]
    random_crop: RandomResizedCropAndInterpolation | None = None
    resize: int = 0
    """Length of the shorter side before the centre is cut out, without a random crop."""
    hflip: float = 0.0
    """Probability of a mirror."""
    interpolation: str

    def __call__(self, data: bytes) -> Tensor | None:
        """Bytes of shape `(channels, height, width)`; None for what is no plain JPEG."""
        image = _open_plain(data, self.mode)
        if image is None:
            return None
        width, height = image.size
        if self.random_crop is not None:
            top, left, rows, columns = self.random_crop.get_params(
                image, self.random_crop.scale, self.random_crop.ratio
            )
            wanted = self.size
        else:
            top, left, rows, columns = 0, 0, height, width
            wanted = _scaled(height, width, self.resize)
        pixels, scale = _decode(data, image, min(rows / wanted[0], columns / wanted[1]), self.mode)
        if pixels is None:
            return None
        if self.random_crop is not None:
            box = (top / scale, left / scale, (top + rows) / scale, (left + columns) / scale)
            top, left, bottom, right = map(round, box)
            pixels = pixels[:, top:bottom, left:right]
        pixels = F.interpolate(pixels[None], wanted, mode=self.interpolation, antialias=True)[0]
        if self.random_crop is None:
            pixels = transforms.functional.center_crop(pixels, list(self.size))
        if self.hflip and torch.rand(1) < self.hflip:
            pixels = pixels.flip(-1)
        return pixels


def find_fast(transform: Any, mode: str, size: tuple[int, int]) -> FastTransform | None:
    """The same as one of timm's transforms, where that is made of known steps."""
    first, *rest = transform.transforms
    kinds = [type(step).__name__ for step in rest]
    name = first.interpolation if hasattr(first, "interpolation") else None
    name = MODES.get(getattr(name, "value", ""))
    if name is None or kinds[-1:] not in (["ToNumpy"], ["PILToTensor"], ["MaybePILToTensor"]):
        return None
    common: dict[str, Any] = {"mode": mode, "size": size, "interpolation": name}
    if type(first) is RandomResizedCropAndInterpolation and set(kinds[:-1]) <= {"RandomHorizontalFlip"}:
        hflip = sum(step.p for step in rest[:-1])
        return FastTransform(random_crop=first, hflip=hflip, **common)
    if type(first) is transforms.Resize and kinds[:-1] == ["CenterCrop"] and isinstance(first.size, int):
        return FastTransform(resize=first.size, **common)
    return None


def _open_plain(data: bytes, mode: str) -> Image.Image | None:
    """A JPEG of these channels that is stored upright, its pixels not yet decoded."""
    if data[:2] != b"\xff\xd8":
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=("JPEG",))
            upright = image.getexif().get(ORIENTATION, 1) == 1
    except Exception:  # whatever is wrong with it, the other way tells
        return None
    return image if upright and image.format == "JPEG" and image.mode in ("L", "RGB") else None


def _decode(data: bytes, image: Image.Image, spare: float, mode: str) -> tuple[Tensor | None, int]:
    """Pixels, and by how much smaller they are than the image says.

    Args:
        spare: pixels per side for each pixel that is wanted in the end.
    """
    scale = next((by for by in (8, 4, 2) if spare >= by * KEPT_DETAIL), 1)
    try:
        if scale == 1:
            encoded = torch.from_numpy(np.frombuffer(data, np.uint8).copy())
            return decode_jpeg(encoded, ImageReadMode.RGB if mode == "RGB" else ImageReadMode.GRAY), 1
        before = image.width
        image.draft(image.mode, (image.width // scale, image.height // scale))
        pixels = np.asarray(image.convert(mode))
        pixels = pixels[..., None] if pixels.ndim == 2 else pixels
        return torch.from_numpy(pixels.copy()).permute(2, 0, 1), round(before / image.width)
    except (RuntimeError, OSError):  # a broken file: the other way tells
        return None, 1


def _scaled(height: int, width: int, shorter: int) -> tuple[int, int]:
    """Both sides, the shorter one of this length, as torchvision rounds them."""
    if height <= width:
        return shorter, int(shorter * width / height)
    return int(shorter * height / width), shorter
