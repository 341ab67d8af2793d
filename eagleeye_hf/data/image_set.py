"""Labelled images under one transform: whole, in order, or in the shuffled batches of an epoch."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Iterator
from itertools import zip_longest
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from eagleeye_hf.data.batches import (
    NO_LABEL,
    Decoded,
    Decoder,
    Portion,
    Reader,
    count_steps,
    cut_evenly,
    plan_epoch,
)
from eagleeye_hf.data.images import content_key, read_bytes
from eagleeye_hf.data.kept import KeptBatches
from eagleeye_hf.data.pairs import TrainingImages
from eagleeye_hf.data.rows import IndexedRows, StreamRows
from eagleeye_hf.data.small import MEMORY, SmallImages, pixels_of
from eagleeye_hf.data.transforms import Preprocessing, SmallCrop
from eagleeye_hf.errors import EagleEyeError
from eagleeye_hf.networks.running import Batch
from eagleeye_hf.processes import gather_parts, is_main
from eagleeye_hf.telling import progress_bar

if TYPE_CHECKING:
    from accelerate import Accelerator

KEPT_TOGETHER = 128
"""Images that a process decodes in a row where all decode together."""


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
        self._kept: tuple[Tensor, Tensor] | None = None
        self._decoded: SmallImages | None = None
        self._last: Reader | None = None

    def count(self, accelerator: Accelerator | None = None) -> int:
        """How many images there are; where a stream doesn't say, its rows are counted once, without decoding.

        Args:
            accelerator: its processes count together.
        """
        if not isinstance(self.rows, StreamRows):
            return len(self.rows)
        if self._num_streamed is None:
            total = self.rows.num_rows
            if total is None:
                total = sum(gather_parts(accelerator, lambda: self._count_part(accelerator)))
            self._num_streamed = total - len(self.excluded)
        return self._num_streamed

    def _count_part(self, accelerator: Accelerator | None) -> int:
        assert isinstance(self.rows, StreamRows)
        part = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
        title = f"counting the images of {self.name}"
        rows = self.rows.divided(part[1]).rows(None, part)
        return sum(1 for _ in progress_bar(rows, title, delay=2, leave=False, disable=not is_main()))

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
        decoded = self._decoded_batches(batch_size, part, num_workers)
        return (batch for batch in self._normalized(decoded, device) if len(batch[1]))

    def cached_batches(
        self,
        batch_size: int = 128,
        device: torch.device | None = None,
        accelerator: Accelerator | None = None,
        num_workers: int = 0,
    ) -> KeptBatches:
        """The same, decoded once and kept as bytes; batches differ by at most one image.

        Args:
            device: where the images of a batch are wanted when it is used.
            accelerator: its processes decode a part each, the first time, and give it to the others.
            num_workers: processes that decode, per process of the run.
        Raises:
            EagleEyeError: there are no images, or none can be decoded.
        """
        if self._kept is None:
            self._kept = self._decode_together(accelerator, num_workers)
        pixels, labels = self._kept
        steps = count_steps(len(labels), batch_size)
        return KeptBatches(
            pixels=pixels.tensor_split(steps),
            targets=labels.tensor_split(steps),
            scale=self.preprocessing.normalize,
            device=device,
            identify=self.identity,
        )

    def identity(self) -> str:
        """A short hash of the images' contents, of their labels, and of how they are seen; nothing is decoded."""
        told = hashlib.sha256(self.preprocessing.identity.encode())
        for image, label in self.rows:
            told.update(f"{content_key(read_bytes(image))} {label} ".encode())
        return told.hexdigest()[:16]

    def _decode_together(self, accelerator: Accelerator | None, num_workers: int) -> tuple[Tensor, Tensor]:
        part = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
        parts = gather_parts(accelerator, lambda: list(self._decoded_batches(KEPT_TOGETHER, part, num_workers)))
        in_order = (batch for turn in zip_longest(*parts) for batch in turn if batch is not None)
        batches = [batch for batch in self._report(in_order) if len(batch[1])]
        if not batches:
            remedy = f"; {self.remedy}" if self.remedy else ""
            raise EagleEyeError(f"`dataset={self.name}`: there is not one image to read{remedy}")
        pixels, labels = zip(*batches, strict=True)
        return torch.cat(pixels), torch.cat(labels)

    def epoch_batches(
        self, epoch: int, portion: Portion, num_workers: int = 0, device: torch.device | None = None
    ) -> Iterator[Batch]:
        """The shuffled micro-batches of one process in one epoch."""
        seed = int(np.random.SeedSequence((self.seed, epoch)).generate_state(1, np.uint64)[0])
        if self.preprocessing.small is not None and self._fits(self.preprocessing.small):
            if self._decoded is None:
                self._decoded = SmallImages.pad(self._small_pixels(num_workers), self.preprocessing)
            return self._decoded.batches(plan_epoch(len(self._decoded.labels), seed, portion), seed, device)
        self._last = reader = self._reader(num_workers, portion.num_processes, shuffled=True)
        if isinstance(self.rows, StreamRows):
            return self._normalized(reader.read_stream(seed, portion), device)
        return self._normalized(reader.read_plan(plan_epoch(len(self.rows), seed, portion), seed), device)

    def _reader(self, num_workers: int, parts: int, shuffled: bool) -> Reader:
        """The one that read the last epoch, where it fits, or a new one."""
        rows, decoder = self.rows, self._decoder()
        if isinstance(rows, StreamRows):
            rows = rows.divided(parts, num_workers)
            num_workers = rows.num_workers(num_workers, parts, shuffled)
        if shuffled and self._last is not None and self._last.serves(rows, decoder, num_workers):
            return self._last
        return Reader(rows, decoder, num_workers)

    def _decoder(self) -> Decoder:
        how = self.preprocessing
        return Decoder(transform=how.transform, fast=how.fast, mode=how.mode, excluded=self.excluded)

    def release(self) -> None:
        """End the workers that wait for the next epoch."""
        self._last = None

    def seen_as(self, other: TrainingImages) -> ImageSet:
        """These images, cropped, mirrored and scaled as the others are."""
        preprocessing = other.preprocessing if isinstance(other, ImageSet) else self.preprocessing
        return ImageSet(self.rows, preprocessing, seed=other.seed, name=self.name)

    def seen_through(self, preprocessing: Preprocessing) -> ImageSet:
        """These images as another network wants them."""
        return ImageSet(
            self.rows,
            preprocessing,
            excluded=self.excluded,
            seed=self.seed,
            name=self.name,
            split=self.split,
            remedy=self.remedy,
        )

    def _fits(self, small: SmallCrop) -> bool:
        side = [size + 2 * small.padding for size in small.size]
        return self.exact_steps and self.count() * side[0] * side[1] * len(self.preprocessing.mode) <= MEMORY

    def _small_pixels(self, num_workers: int) -> Iterator[Batch]:
        assert not isinstance(self.rows, StreamRows)
        reader = Reader(self.rows, pixels_of(self.preprocessing, self.excluded), num_workers)
        decoded = reader.read_plan(cut_evenly(len(self.rows), 512), None)
        return (batch for batch in self._report(decoded) if len(batch[1]))

    def _decoded_batches(self, batch_size: int, part: tuple[int, int], num_workers: int) -> Iterable[Decoded]:
        which, parts = part
        reader = self._reader(num_workers, parts, shuffled=False)
        if isinstance(self.rows, StreamRows):
            return reader.read_stream(None, Portion(batch_size=batch_size * parts, process=which, num_processes=parts))
        return reader.read_plan(cut_evenly(len(self.rows), batch_size)[which::parts], None)

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
