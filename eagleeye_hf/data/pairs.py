"""Images with targets of any shape, for tasks that are no classification: masks, boxes of labels, numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from eagleeye_hf.data.batches import Portion, count_steps, cut_evenly, own_randomness, plan_epoch, seed_everything
from eagleeye_hf.networks.running import Batch

if TYPE_CHECKING:
    from accelerate import Accelerator

Augment = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class TrainingImages(Protocol):
    """What training needs of images: `ImageSet` has it, and `PairSet`."""

    name: str
    seed: int

    @property
    def exact_steps(self) -> bool:
        """Whether every process knows the number of its batches beforehand."""

    def count(self, accelerator: Accelerator | None = None) -> int:
        """How many images there are; where they have to be counted, by all processes together."""

    def count_steps(self, batch_size: int) -> int:
        """Steps of an epoch."""

    def cached_batches(
        self,
        batch_size: int = 128,
        device: torch.device | None = None,
        accelerator: Accelerator | None = None,
        num_workers: int = 0,
    ) -> Sequence[Batch]:
        """All of them in order, kept; made ready by all processes together."""

    def epoch_batches(
        self, epoch: int, portion: Portion, num_workers: int = 0, device: torch.device | None = None
    ) -> Iterator[Batch]:
        """The shuffled micro-batches of one process in one epoch."""

    def seen_as(self, other: TrainingImages) -> TrainingImages:
        """These images, cropped, mirrored and scaled as the others are."""


class PairSet:
    """Images and their targets, ready for the network.

    Args:
        pairs: `(image, target)`, an image of shape `(C, H, W)`, normalised; targets are tensors of one shape. A
            `torch.utils.data.Dataset` with a length will do.
        augment: makes of an image and its target those that training sees; it may draw from `random`, NumPy and
            PyTorch, which are seeded for every image anew.
        seed: of the order and of what `augment` draws.
        name: for messages.
    """

    exact_steps = True

    def __init__(
        self,
        pairs: Sequence[tuple[Tensor, Tensor]],
        augment: Augment | None = None,
        *,
        seed: int = 0,
        name: str = "pairs",
    ) -> None:
        self.pairs, self.augment, self.seed, self.name = pairs, augment, seed, name

    def count(self, accelerator: Accelerator | None = None) -> int:
        return len(self.pairs)

    def count_steps(self, batch_size: int) -> int:
        return count_steps(len(self.pairs), batch_size)

    def cached_batches(
        self,
        batch_size: int = 128,
        device: torch.device | None = None,
        accelerator: Accelerator | None = None,
        num_workers: int = 0,
    ) -> Sequence[Batch]:
        """All of them in order, not augmented, on the CPU."""
        return [_stack([self.pairs[int(i)] for i in indices]) for indices in cut_evenly(len(self.pairs), batch_size)]

    def epoch_batches(
        self, epoch: int, portion: Portion, num_workers: int = 0, device: torch.device | None = None
    ) -> Iterator[Batch]:
        seed = int(np.random.SeedSequence((self.seed, epoch)).generate_state(1)[0])
        for indices in plan_epoch(len(self.pairs), seed, portion):
            images, targets = _stack([self._seen(int(index), seed) for index in indices])
            yield images.to(device), targets

    def seen_as(self, other: TrainingImages) -> PairSet:
        augment = other.augment if isinstance(other, PairSet) else None
        return PairSet(self.pairs, augment, seed=other.seed, name=self.name)

    def _seen(self, index: int, seed: int) -> tuple[Tensor, Tensor]:
        image, target = self.pairs[index]
        if self.augment is None:
            return image, target
        with own_randomness():
            seed_everything(seed ^ (index * 2_654_435_761 % 2**32))
            return self.augment(image, target)


def _stack(pairs: Sequence[tuple[Tensor, Tensor]]) -> Batch:
    images, targets = zip(*pairs, strict=True)
    return torch.stack([torch.as_tensor(i) for i in images]), torch.stack([torch.as_tensor(t) for t in targets])
