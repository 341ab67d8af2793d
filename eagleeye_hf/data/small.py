"""Small training images, kept decoded: shifted and mirrored as whole batches, so that loading costs next to nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from eagleeye_hf.data.batches import Batch, Decoder
from eagleeye_hf.data.transforms import SmallCrop

MEMORY = 2 << 30
"""Bytes of decoded images that are kept; where there are more, every epoch decodes."""


@dataclass(frozen=True, kw_only=True)
class SmallImages:
    """All training images of a dataset of small ones."""

    images: Tensor
    """Padded pixels, uint8, shape `(N, height, width, channels)`."""
    labels: Tensor
    crop: SmallCrop

    @classmethod
    def pad(cls, batches: Iterable[Batch], crop: SmallCrop) -> SmallImages:
        """Collect what `pixels_of` made."""
        p = crop.padding
        padded = [(F.pad(images, (0, 0, p, p, p, p)), labels) for images, labels in batches]
        images, labels = (torch.cat(parts) for parts in zip(*padded, strict=True))
        return cls(images=images, labels=labels, crop=crop)

    def batches(self, plan: Sequence[np.ndarray], seed: int) -> Iterator[Batch]:
        """The batches of a plan; shifts and mirrors depend on the seed and the image alone."""
        crop, generator = self.crop, torch.Generator().manual_seed(seed % 2**63)
        num, shifts = len(self.labels), 2 * self.crop.padding + 1
        down, right = torch.randint(shifts, (2, num), generator=generator)
        mirrored = torch.rand(num, generator=generator) < 0.5 * crop.hflip
        mean, std = (torch.tensor(values) * 255 for values in (crop.mean, crop.std))
        rows, columns = torch.arange(crop.size[0]), torch.arange(crop.size[1])
        for indices in map(torch.from_numpy, plan):
            flip = mirrored[indices, None]
            x = torch.where(flip, columns.flip(0), columns) + right[indices, None]
            y = rows + down[indices, None]
            pixels = self.images[indices[:, None, None], y[:, :, None], x[:, None, :]]
            yield ((pixels - mean) / std).permute(0, 3, 1, 2), self.labels[indices]


def pixels_of(crop: SmallCrop, mode: str, excluded: frozenset[int]) -> Decoder:
    """A decoder to resized pixels, uint8, channels last."""
    return Decoder(transform=partial(_pixels, crop), mode=mode, excluded=excluded)


def _pixels(crop: SmallCrop, image: Image.Image) -> Tensor:
    return torch.from_numpy(np.atleast_3d(np.asarray(crop.resize(image))).copy())
