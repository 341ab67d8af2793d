"""One encoded image: its bytes, what tells it apart, and how it is decoded."""

from __future__ import annotations

import functools
import io
import warnings
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import fsspec
from PIL import Image, ImageOps

Row = tuple[Any, int | None]
"""An encoded image (`{"bytes", "path"}`) and its label, which may be missing."""
ORIENTATION = 0x0112
"""EXIF's tag of how the camera was held."""
RASTER_FORMATS = (
    *("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "HEIF", "MPO", "ICO", "ICNS", "DIB"),
    *("TGA", "PCX", "SGI", "DDS", "QOI"),
)
"""What PIL may take an image for, whatever its file is called; others, as EPS, it would hand to another program."""


def read_bytes(image: Mapping[str, Any]) -> bytes:
    """The encoded image, from memory or from the file that it names."""
    if image["bytes"] is not None:
        return image["bytes"]
    path = image["path"]
    with fsspec.open(path, "rb") if "::" in path or "://" in path else open(path, "rb") as file:
        return file.read()


def encode(image: Image.Image) -> bytes:
    """A decoded image as a file that loses nothing."""
    file = io.BytesIO()
    image.save(file, "PNG" if image.mode in ("1", "L", "LA", "I", "I;16", "P", "RGB", "RGBA") else "TIFF")
    return file.getvalue()


def content_key(data: bytes) -> int:
    """What tells images apart by their content: a checksum and the length."""
    return len(data) << 32 | zlib.crc32(data)


def open_image(value: Any) -> Image.Image:
    """Open bytes or `{"bytes", "path"}`, nothing decoded yet; pass on an image."""
    if isinstance(value, Mapping):
        value = read_bytes(value)
    return Image.open(io.BytesIO(value), formats=_known_formats()) if isinstance(value, bytes) else value


def upright_image(image: Image.Image, mode: str) -> Image.Image:
    """Decode an opened image, turn it upright, and convert it."""
    if image.mode.startswith("I"):  # 16-bit gray: PIL would clip instead of scaling
        image = image.convert("I").point(lambda level: level / 257).convert("L")
    image.load()
    ImageOps.exif_transpose(image, in_place=True)
    return image if image.mode == mode else image.convert(mode)


def decode_image(value: Any, mode: str = "RGB", fast: Callable[[Image.Image], Any] | None = None) -> Any:
    """Open an image and decode it.

    Args:
        mode: PIL's name of the channels: `"RGB"` or `"L"`.
        fast: instead makes of the opened image what is wanted.
    """
    with warnings.catch_warnings():  # PIL's remarks on odd files that it reads all the same
        warnings.simplefilter("ignore")
        opened = open_image(value)
        return upright_image(opened, mode) if fast is None else fast(opened)


@functools.lru_cache
def _known_formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in RASTER_FORMATS if name in Image.OPEN)
