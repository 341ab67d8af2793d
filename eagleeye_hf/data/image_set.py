"""Labelled images under one transform: whole, in order, or in the shuffled batches of an epoch."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from eagleeye_hf.data.batches import (
    NO_LABEL,
    Decoded,
    Decoder,
    Portion,
    count_steps,
    cut_evenly,
    load_indexed,
    load_stream,
    plan_epoch,
)
from eagleeye_hf.data.pairs import TrainingImages
from eagleeye_hf.data.rows import IndexedRows, StreamRows
from eagleeye_hf.data.small import MEMORY, SmallImages, pixels_of
from eagleeye_hf.data.transforms import Preprocessing, SmallCrop
from eagleeye_hf.errors import EagleEyeError
from eagleeye_hf.networks.running import Batch
from eagleeye_hf.telling import progress_bar


class ImageSet:
    """Labelled images, encoded, with the preprocessing that a model wants.

    Args:
        rows: with random access, or a stream.
        excluded: content keys of images that are left out.
        seed: of shuffling and random crops.
        name: of the dataset, for messages.
        split: of the dataset, for messages.
        remedy: what to do where there are no images, for messages.
    """

    def __init__(
        self,
        rows: IndexedRows | StreamRows,
        preprocessing: Preprocessing,
        *,
        excluded: frozenset[int] = frozenset(),
        seed: int = 0,
        name: str = "",
        split: str = "train",
        remedy: str = "",
    ) -> None:
        self.rows, self.preprocessing = rows, preprocessing
        self.excluded, self.seed = excluded, seed
        self.name, self.split, self.remedy = name, split, remedy
        self.skipped = 0
        """Images that could not be decoded in the last pass."""
        self._num_streamed: int | None = None
        self._cache: tuple[Tensor, Tensor] | None = None
        self._decoded: SmallImages | None = None

    def count(self) -> int:
        """How many images there are; where a stream doesn't say, its rows are counted once, without decoding."""
        if not isinstance(self.rows, StreamRows):
            return len(self.rows)
        if self._num_streamed is None:
            total = self.rows.num_rows
            if total is None:
                other = os.environ.get("RANK", "0") != "0"
                title = f"counting the images of {self.name}"
                total = sum(1 for _ in progress_bar(self.rows, title, delay=2, leave=False, disable=other))
            self._num_streamed = total - len(self.excluded)
        return self._num_streamed

    def count_steps(self, batch_size: int) -> int:
        """Steps of an epoch."""
        return count_steps(self.count(), batch_size)

    @property
    def exact_steps(self) -> bool:
        """Whether every process knows the number of its batches beforehand."""
        return not isinstance(self.rows, StreamRows)

    def batches(
        self,
        batch_size: int = 128,
        part: tuple[int, int] = (0, 1),
        num_workers: int = 0,
        device: torch.device | None = None,
    ) -> Iterator[Batch]:
        """Decode batch by batch, in order; with random access, batches differ by at most one image.

        Args:
            part: (this process, number of processes); each gets every n-th batch.
            num_workers: processes that decode.
            device: where the images are wanted; they go there as bytes.
        """
        which, parts = part
        decoder = Decoder(transform=self.preprocessing.transform, mode=self.preprocessing.mode, excluded=self.excluded)
        if isinstance(self.rows, StreamRows):
            portion = Portion(batch_size=batch_size * parts, process=which, num_processes=parts)
            return self._filled(load_stream(self.rows, None, portion, decoder, num_workers), device)
        plan = cut_evenly(len(self.rows), batch_size)[which::parts]
        return self._filled(load_indexed(self.rows, plan, decoder, num_workers), device)

    def cached_batches(self, batch_size: int = 128) -> list[Batch]:
        """The same as a list of tensors, decoded once and kept; batches differ by at most one image.

        Raises:
            EagleEyeError: there are no images, or none can be decoded.
        """
        if self._cache is None:
            parts = list(self.batches(batch_size))
            if not parts:
                remedy = f"; {self.remedy}" if self.remedy else ""
                raise EagleEyeError(f"`dataset={self.name}`: there is not one image to read{remedy}")
            self._cache = torch.cat([images for images, _ in parts]), torch.cat([labels for _, labels in parts])
        images, labels = self._cache
        steps = count_steps(len(labels), batch_size)
        return list(zip(images.tensor_split(steps), labels.tensor_split(steps), strict=True))

    def epoch_batches(
        self, epoch: int, portion: Portion, num_workers: int = 0, device: torch.device | None = None
    ) -> Iterator[Batch]:
        """The shuffled micro-batches of one process in one epoch."""
        seed = int(np.random.SeedSequence((self.seed, epoch)).generate_state(1, np.uint64)[0])
        if self.preprocessing.small is not None and self._fits(self.preprocessing.small):
            if self._decoded is None:
                self._decoded = SmallImages.pad(self._small_pixels(num_workers), self.preprocessing)
            return self._decoded.batches(plan_epoch(len(self._decoded.labels), seed, portion), seed, device)
        decoder = Decoder(
            transform=self.preprocessing.transform, mode=self.preprocessing.mode, excluded=self.excluded, seed=seed
        )
        if isinstance(self.rows, StreamRows):
            return self._normalized(load_stream(self.rows, seed, portion, decoder, num_workers), device)
        plan = plan_epoch(len(self.rows), seed, portion)
        return self._normalized(load_indexed(self.rows, plan, decoder, num_workers), device)

    def seen_as(self, other: TrainingImages) -> ImageSet:
        """These images, cropped, mirrored and scaled as the others are."""
        preprocessing = other.preprocessing if isinstance(other, ImageSet) else self.preprocessing
        return ImageSet(self.rows, preprocessing, seed=other.seed, name=self.name)

    def _fits(self, small: SmallCrop) -> bool:
        side = [size + 2 * small.padding for size in small.size]
        return self.exact_steps and self.count() * side[0] * side[1] * len(self.preprocessing.mode) <= MEMORY

    def _small_pixels(self, num_workers: int) -> Iterator[Batch]:
        assert not isinstance(self.rows, StreamRows)
        plan = cut_evenly(len(self.rows), 512)
        decoded = load_indexed(self.rows, plan, pixels_of(self.preprocessing, self.excluded), num_workers)
        return (batch for batch in self._report(decoded) if len(batch[1]))

    def _filled(self, decoded: Iterable[Decoded], device: torch.device | None) -> Iterator[Batch]:
        return (batch for batch in self._normalized(decoded, device) if len(batch[1]))

    def _normalized(self, decoded: Iterable[Decoded], device: torch.device | None) -> Iterator[Batch]:
        for pixels, labels in self._report(decoded):
            yield self.preprocessing.normalize(pixels, device) if len(labels) else pixels, labels

    def _report(self, decoded: Iterable[Decoded]) -> Iterator[Batch]:
        """Pass on what was decoded; at the end say what was not."""
        problems: list[str] = []
        seen = 0
        for batch in decoded:
            if batch.failure:
                raise EagleEyeError(batch.failure)
            problems += batch.problems
            seen += len(batch.labels)
            yield batch.pixels, batch.labels
        self.skipped = len(problems)
        if problems and not seen and all(problem.endswith(NO_LABEL) for problem in problems):
            raise EagleEyeError(
                f"`dataset={self.name}`: the split `{self.split}` is unlabelled, since none of its {len(problems)} "
                "images has a label; use a split with labels"
            )
        if problems and not seen:
            raise EagleEyeError(f"`dataset={self.name}`: not one image can be decoded; the first is {problems[0]}")
        if problems:
            warnings.warn(
                f"{len(problems)} of {seen + len(problems)} images of {self.name or 'the dataset'} can't be decoded "
                f"and were skipped; the first is {problems[0]}",
                stacklevel=2,
            )
