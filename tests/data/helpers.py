"""What a set of images really feeds, told by the pixels."""

import copy
from dataclasses import replace

import numpy as np

from eagleeye_hf.data.batches import Portion
from eagleeye_hf.data.image_set import ImageSet


def raw(images: ImageSet) -> ImageSet:
    """The same images as plain pixels."""
    plain = copy.copy(images)
    channels = len(images.preprocessing.mean)
    plain._kept = None
    plain._last = None
    plain.preprocessing = replace(
        images.preprocessing, transform=pixels, fast=None, small=None, mean=(0,) * channels, std=(1 / 255,) * channels
    )
    return plain


def pixels(image) -> np.ndarray:
    return np.array(image).transpose(2, 0, 1)


def seen(images: ImageSet, epoch: int | None = None, portion: Portion | None = None, workers: int = 0) -> list[bytes]:
    """The pixels of every image, in order; of one epoch where given."""
    plain = raw(images)
    if epoch is None:
        batches = plain.batches(16, num_workers=workers)
    else:
        batches = plain.epoch_batches(epoch, portion or Portion(batch_size=16), workers)
    whole = (batch.round().byte().permute(0, 2, 3, 1) for batch, labels in batches if len(labels))
    return [image.numpy().tobytes() for batch in whole for image in batch]
