"""Decoded images that are kept: as bytes, decoded by all processes together, scaled when they are used."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import overload

import torch
from torch import Tensor

from eagleeye_hf.networks.running import Batch

Scale = Callable[[Tensor, torch.device | None], Tensor]
"""From bytes to what a network was trained on, on a device."""


@dataclass(frozen=True, kw_only=True)
class KeptBatches(Sequence[Batch]):
    """Batches whose pixels are bytes until one is asked for."""

    pixels: Sequence[Tensor]
    """Of each batch, shape `(N, channels, height, width)`."""
    targets: Sequence[Tensor]
    scale: Scale
    device: torch.device | None
    identify: Callable[[], str]
    """What tells the images from others: a hash of their files' contents, their labels and how they are seen."""

    def __len__(self) -> int:
        return len(self.pixels)

    @overload
    def __getitem__(self, place: int) -> Batch: ...
    @overload
    def __getitem__(self, place: slice) -> KeptBatches: ...
    def __getitem__(self, place: int | slice) -> Batch | KeptBatches:
        if isinstance(place, slice):
            return replace(self, pixels=self.pixels[place], targets=self.targets[place])
        return self.scale(self.pixels[place], self.device), self.targets[place]
