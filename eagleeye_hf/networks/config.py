"""How images reach a network, where its own description is not the whole truth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from eagleeye_hf.configs import Within, check_fields
from eagleeye_hf.errors import EagleEyeError

Interpolation = Literal["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"]


@dataclass(frozen=True, kw_only=True)
class InputConfig:
    """What a network takes; all of it by default as the network says."""

    image_size: Annotated[int, Within("[1, inf)")] | None = None
    """Height and width in pixels of the images that the weights were trained for."""
    mean: tuple[float, ...] | None = None
    """Per channel, subtracted from pixels in [0, 1]; one number holds for all channels."""
    std: tuple[Annotated[float, Within("(0, inf)")], ...] | None = None
    """Per channel, by which pixels are divided afterwards."""
    interpolation: Interpolation | None = None
    """How images are resized."""
    crop_pct: Annotated[float, Within("(0, 1]")] | None = None
    """The part of an image's side that the central crop keeps."""
    in_chans: Annotated[int, Within("[1, inf)")] | None = None
    """Channels of an image; 1 for gray."""

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("mean", "std"):
            values = getattr(self, name)
            if values is not None and self.in_chans and len(values) not in (1, self.in_chans):
                raise EagleEyeError(
                    f"`{name}` has {len(values)} numbers for `in_chans={self.in_chans}`; give one, or one per channel"
                )
