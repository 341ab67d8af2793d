"""timm's usual transforms with PyTorch's resizing of bytes, which takes a fifth of PIL's time.

It follows the same rule, to within a few levels at edges and a hundredth of a level on average.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch import Tensor
from torchvision import transforms
from torchvision.transforms.functional import center_crop

from eagleeye_hf.data.images import ORIENTATION, upright_image

try:  # the same pixels as PIL's, sooner; newer versions may be without it
    from torchvision.io import ImageReadMode, decode_jpeg
except ImportError:
    decode_jpeg, READ = None, {}
else:
    READ = {"RGB": ImageReadMode.RGB, "L": ImageReadMode.GRAY}

KEPT_DETAIL = 2
"""Pixels per side, for each that is wanted, down to which the decoder of large JPEGs may leave out detail."""


@dataclass(frozen=True, kw_only=True)
class FastTransform:
    """A crop, a resize and maybe a mirror, drawn as timm's and torchvision's transforms draw them."""

    mode: str
    size: tuple[int, int]
    interpolation: str
    random_crop: RandomResizedCropAndInterpolation | None = None
    shorter: int = 0
    """Length of the shorter side before the centre is cut out, where there is no random crop."""
    hflip: float = 0.0
    """Probability of a mirror."""

    def __call__(self, image: Image.Image) -> Tensor:
        """
        Args:
            image: opened, maybe not yet decoded.
        Returns:
            Bytes of shape `(channels, height, width)`.
        """
        turned = image.getexif().get(ORIENTATION, 1) != 1  # in EXIF or in XMP
        if turned:  # it has other sides than it says
            image = upright_image(image, self.mode)
        width, height = image.size
        box, wanted = (0, 0, width, height), _scaled(height, width, self.shorter)
        if self.random_crop is not None:
            top, left, rows, columns = self.random_crop.get_params(
                image, self.random_crop.scale, self.random_crop.ratio
            )
            box, wanted = (left, top, left + columns, top + rows), self.size
        _leave_out_detail(image, min((box[3] - box[1]) / wanted[0], (box[2] - box[0]) / wanted[1]))
        scale = image.width / width
        pixels = _decode(image, self.mode, plain=not turned and scale == 1)
        if self.random_crop is not None:
            left, top, right, bottom = (round(side * scale) for side in box)
            pixels = pixels[:, top:bottom, left:right]
        found = F.interpolate(pixels[None], wanted, mode=self.interpolation, antialias=True)[0]
        if self.random_crop is None:
            found = center_crop(found, list(self.size))
        return found.flip(-1) if self.hflip and torch.rand(1) < self.hflip else found


def find_fast(transform: Any, mode: str, size: tuple[int, int]) -> FastTransform | None:
    """The same as one of timm's transforms, where that is made of known steps."""
    first, *others, _ = transform.transforms
    kinds = [type(step).__name__ for step in others]
    name = getattr(getattr(first, "interpolation", None), "value", "")
    if name not in ("bilinear", "bicubic"):  # others PyTorch doesn't have for bytes
        return None
    common: dict[str, Any] = {"mode": mode, "size": size, "interpolation": name}
    if type(first) is RandomResizedCropAndInterpolation and kinds in ([], ["RandomHorizontalFlip"]):
        return FastTransform(random_crop=first, hflip=sum(step.p for step in others), **common)
    if type(first) is transforms.Resize and kinds == ["CenterCrop"] and isinstance(first.size, int):
        return FastTransform(shorter=first.size, **common)
    return None


def _decode(image: Image.Image, mode: str, plain: bool) -> Tensor:
    """Bytes of shape `(channels, height, width)`.

    Args:
        plain: whether the file holds what `image` says it does.
    """
    file = getattr(image, "fp", None)
    if (
        plain
        and decode_jpeg is not None
        and image.format == "JPEG"
        and image.mode in READ
        and isinstance(file, BytesIO)
    ):
        with suppress(RuntimeError):  # a broken file: PIL tells what is wrong with it
            return decode_jpeg(torch.frombuffer(file.getbuffer(), dtype=torch.uint8), READ[mode])
    pixels = np.array(upright_image(image, mode))
    return torch.from_numpy(pixels[..., None] if pixels.ndim == 2 else pixels).permute(2, 0, 1)


def _leave_out_detail(image: Image.Image, spare: float) -> None:
    """Let a large JPEG be decoded to a half, a quarter or an eighth of its sides; other images don't heed it.

    Args:
        spare: pixels per side for each that is wanted in the end.
    """
    by = next((by for by in (8, 4, 2) if spare >= by * KEPT_DETAIL), 1)
    if by > 1:
        image.draft(None, (image.width // by, image.height // by))


def _scaled(height: int, width: int, shorter: int) -> tuple[int, int]:
    """Both sides, the shorter one of this length, as torchvision rounds them."""
    if height <= width:
        return shorter, int(shorter * width / height)
    return int(shorter * height / width), shorter
