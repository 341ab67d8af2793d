"""Images without labels: what the full network decides stands for them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import datasets
import torch
from torch import Tensor, nn

from eagleeye_hf.data.batches import Portion
from eagleeye_hf.data.columns import find_label
from eagleeye_hf.data.image_set import ImageSet
from eagleeye_hf.data.kept import KeptBatches
from eagleeye_hf.data.pairs import TrainingImages
from eagleeye_hf.data.source import OpenedDataset
from eagleeye_hf.data.transforms import Preprocessing
from eagleeye_hf.errors import EagleEyeError
from eagleeye_hf.networks.running import Batch, evaluation_mode, run_model

if TYPE_CHECKING:
    from accelerate import Accelerator

PLACEHOLDER = "eagleeye_no_label"
"""A column of zeros, for what reads labels."""


def has_labels(dataset: OpenedDataset, label_column: str | None) -> bool:
    """Whether the training images have a column of labels, or one is given."""
    train = dataset.splits.get("train")
    return label_column is not None or train is None or find_label(train.features or {}) is not None


def fill_labels(dataset: OpenedDataset) -> OpenedDataset:
    """The same dataset with a column of zeros for labels.

    Raises:
        EagleEyeError: it is a stream.
    """
    filled: dict[Any, Any] = {}
    for split, rows in dataset.splits.items():
        if not isinstance(rows, datasets.Dataset):
            raise EagleEyeError(
                f"`dataset={dataset.name}` has no labels and is a stream; download it first, with `--streaming False`"
            )
        filled[split] = rows.add_column(PLACEHOLDER, [0] * len(rows))
    return replace(dataset, splits=datasets.DatasetDict(filled))


class TaughtImages:
    """Images whose labels are the decisions of a network.

    Args:
        teacher: the full network, on the device where it is to run.
        shown: the same images as the teacher wants them, where that is otherwise.
    """

    def __init__(self, images: ImageSet, teacher: nn.Module, shown: ImageSet | None = None) -> None:
        self.images, self.teacher, self.shown = images, teacher, shown or images
        self.name, self.seed, self.split = images.name, images.seed, images.split
        self._outputs: Tensor | None = None

    @property
    def exact_steps(self) -> bool:
        return self.images.exact_steps

    def count(self, accelerator: Accelerator | None = None) -> int:
        return self.images.count(accelerator)

    def count_steps(self, batch_size: int) -> int:
        return self.images.count_steps(batch_size)

    def seen_through(self, preprocessing: Preprocessing) -> TaughtImages:
        """These images as another network wants them; the teacher sees them as before."""
        return TaughtImages(self.images.seen_through(preprocessing), self.teacher, self.shown)

    def seen_as(self, other: TrainingImages) -> TrainingImages:
        return self.images.seen_as(other)

    def epoch_batches(
        self, epoch: int, portion: Portion, num_workers: int = 0, device: torch.device | None = None
    ) -> Iterator[Batch]:
        return self.images.epoch_batches(epoch, portion, num_workers, device)

    def batches(
        self,
        batch_size: int = 128,
        part: tuple[int, int] = (0, 1),
        num_workers: int = 0,
        device: torch.device | None = None,
    ) -> Iterator[Batch]:
        how = batch_size, part, num_workers, device
        if self.shown is self.images:
            for pixels, _ in self.images.batches(*how):
                yield pixels, self._run(pixels).argmax(1)
        else:
            for (pixels, _), (shown, _) in zip(self.images.batches(*how), self.shown.batches(*how), strict=True):
                yield pixels, self._run(shown).argmax(1)

    def cached_batches(
        self,
        batch_size: int = 128,
        device: torch.device | None = None,
        accelerator: Accelerator | None = None,
        num_workers: int = 0,
    ) -> KeptBatches:
        found = self.taught_batches(batch_size, device, accelerator, num_workers)
        return replace(found, targets=[outputs.argmax(1) for outputs in found.targets])

    def taught_batches(
        self,
        batch_size: int = 128,
        device: torch.device | None = None,
        accelerator: Accelerator | None = None,
        num_workers: int = 0,
    ) -> KeptBatches:
        """The images with all outputs of the network, computed once."""
        found = self.images.cached_batches(batch_size, device, accelerator, num_workers)
        if self._outputs is None:
            shown = self.shown.cached_batches(batch_size, device, accelerator, num_workers)
            self._outputs = torch.cat([self._run(pixels) for pixels, _ in shown])
        return replace(found, targets=self._outputs.split([len(pixels) for pixels in found.pixels]))

    def _run(self, pixels: Tensor) -> Tensor:
        with evaluation_mode(self.teacher), torch.no_grad():
            return run_model(self.teacher, pixels).float().cpu()
