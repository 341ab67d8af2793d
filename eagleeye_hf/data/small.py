"""Small training images, kept decoded: shifted and mirrored as whole batches, so that loading costs next to nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision import transforms

from eagleeye_hf.data.batches import Decoder
from eagleeye_hf.data.transforms import Preprocessing
from eagleeye_hf.networks.running import Batch

MEMORY = 2 << 30
"""Bytes of decoded images that are kept; where there are more, every epoch decodes."""


@dataclass(frozen=True, kw_only=True)
class SmallImages:
    """All training images of a dataset of small ones."""

    images: Tensor
    """Padded pixels, uint8, shape `(N, height, width, channels)`."""
    labels: Tensor
    preprocessing: Preprocessing

    @classmethod
    def pad(cls, batches: Iterable[Batch], preprocessing: Preprocessing) -> SmallImages:
        """Collect what `pixels_of` made."""
        assert preprocessing.small is not None
        padded = [
            (F.pad(pixels, [preprocessing.small.padding] * 4).permute(0, 2, 3, 1), labels) for pixels, labels in batches
        ]
        images, labels = (torch.cat(parts) for parts in zip(*padded, strict=True))
        return cls(images=images.contiguous(), labels=labels, preprocessing=preprocessing)

    def batches(self, plan: Sequence[np.ndarray], seed: int, device: torch.device | None = None) -> Iterator[Batch]:
        """The batches of a plan; shifts and mirrors depend on the seed and the image alone."""
        crop, generator = self.preprocessing.small, torch.Generator().manual_seed(seed % 2**63)
        assert crop is not None
        num, shifts = len(self.labels), 2 * crop.padding + 1
        down, right = torch.randint(shifts, (2, num), generator=generator)
        mirrored = torch.rand(num, generator=generator) < 0.5 * crop.hflip
        rows, columns = torch.arange(crop.size[0]), torch.arange(crop.size[1])
        for indices in map(torch.from_numpy, plan):
            flip = mirrored[indices, None]
            x = torch.where(flip, columns.flip(0), columns) + right[indices, None]
            y = rows + down[indices, None]
            pixels = self.images[indices[:, None, None], y[:, :, None], x[:, None, :]]
            yield self.preprocessing.normalize(pixels.permute(0, 3, 1, 2), device), self.labels[indices]


def pixels_of(preprocessing: Preprocessing, excluded: frozenset[int]) -> Decoder:
    """A decoder to resized pixels that are not yet shifted."""
    assert preprocessing.small is not None
    return Decoder(
        transform=transforms.Compose([preprocessing.small.resize, transforms.PILToTensor()]),
        mode=preprocessing.mode,
        excluded=excluded,
    )
