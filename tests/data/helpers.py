"""What a set of images really feeds, told by the pixels."""

import copy

import numpy as np
import torch

from eagleeye_hf.data.batches import Share
from eagleeye_hf.data.image_set import ImageSet


def raw(images: ImageSet) -> ImageSet:
    """The same images as plain pixels."""
    plain = copy.copy(images)
    plain.small, plain._cache = None, None
    plain.transform = pixels
    return plain


def pixels(image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image).copy())


def seen(images: ImageSet, epoch: int | None = None, share: Share | None = None, workers: int = 0) -> list[bytes]:
    """The pixels of every image, in order; of one epoch where given."""
    plain = raw(images)
    if epoch is None:
        batches = plain.batches(16, num_workers=workers)
    else:
        batches = plain.epoch_batches(epoch, share or Share(batch_size=16), workers)
    return [image.numpy().tobytes() for batch, _ in batches for image in batch]
