"""One encoded image: its bytes, what tells it apart, and how it is decoded."""

from __future__ import annotations

import functools
import io
import warnings
import zlib
from collections.abc import Mapping
from typing import Any

import fsspec
from PIL import Image, ImageOps

Row = tuple[Any, int | None]
"""An encoded image (`{"bytes", "path"}`) and its label, which may be missing."""
RASTER_FORMATS = (
    *("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "HEIF", "MPO", "ICO", "ICNS", "DIB"),
    *("TGA", "PCX", "SGI", "DDS", "QOI"),
)
"""What PIL may take an image for, whatever its file is called; others, as EPS, it would hand to another program."""


def read_bytes(image: Mapping[str, Any]) -> bytes:
    """The encoded image, from memory or from the file that it names."""
    if image["bytes"] is not None:
        return image["bytes"]
    with fsspec.open(image["path"], "rb") as file:
        return file.read()


def content_key(data: bytes) -> int:
    """What tells images apart by their content: a checksum and the length."""
    return len(data) << 32 | zlib.crc32(data)


def decode_image(value: Any, mode: str = "RGB") -> Image.Image:
    """Decode bytes or `{"bytes", "path"}` (or pass on an image), turn it upright, and convert it.

    Args:
        mode: PIL's name of the channels: `"RGB"` or `"L"`.
    """
    if isinstance(value, Mapping):
        value = read_bytes(value)
    with warnings.catch_warnings():  # PIL's remarks on odd files that it reads all the same
        warnings.simplefilter("ignore")
        if isinstance(value, bytes):
            value = Image.open(io.BytesIO(value), formats=_known_formats())
        if value.mode.startswith("I"):  # 16-bit gray: PIL would clip instead of scaling
            value = value.convert("I").point(lambda level: level / 257).convert("L")
        value.load()
        ImageOps.exif_transpose(value, in_place=True)
        return value if value.mode == mode else value.convert(mode)


@functools.lru_cache
def _known_formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in RASTER_FORMATS if name in Image.OPEN)
