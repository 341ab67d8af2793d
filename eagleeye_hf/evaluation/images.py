"""The images that score: in one format, converted once, on the device where there is room."""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Sequence

import torch
from torch import Tensor

from eagleeye_hf.data.kept import KeptBatches
from eagleeye_hf.evaluation.format import Format
from eagleeye_hf.networks.running import Batch, bytes_of, scale_images


class ScoringImages:
    """Calibration and holdout batches.

    Args:
        device: where they are wanted.
    """

    def __init__(self, calibration: Sequence[Batch], holdout: Sequence[Batch], device: torch.device) -> None:
        self.calibration, self.holdout, self.device = _without_single(calibration), holdout, device
        self._given = calibration, holdout
        self._converted: dict[tuple[Format, int | None], tuple[list[Tensor], list[Batch]]] = {}
        self._lock = threading.Lock()

    def take(
        self, format: Format, fraction: float = 1.0, after: float = 0.0, size: int | None = None
    ) -> tuple[list[Tensor], list[Batch]]:
        """The batches of both between these fractions of them. From the start at least one; later there may be no
        holdout batch, and where there is no other calibration batch it is the one before.

        Args:
            size: side of the images in pixels, which are scaled down from those that were given.
        """
        with self._lock:
            if (format, size) not in self._converted:
                home = self._home(format)
                calibration = [format.convert(scale_images(images.to(home), size)) for images, _ in self.calibration]
                holdout = [
                    (format.convert(scale_images(images.to(home), size)), labels) for images, labels in self.holdout
                ]
                kept = {key: value for key, value in self._converted.items() if key[0] == format}
                self._converted = kept | {(format, size): (calibration, holdout)}  # one format: memory is bounded
            calibration, holdout = self._converted[format, size]
        first, last = (_part(calibration, part) for part in (after, fraction))
        return calibration[min(first, last - 1) : last], holdout[_part(holdout, after) : _part(holdout, fraction)]

    @property
    def num_bytes(self) -> int:
        """As they are given, and in one format."""
        tensors = self._lying()
        for calibration, holdout in self._converted.values():
            tensors += [*calibration, *(images for images, _ in holdout)]
        return sum(images.nbytes for images in tensors)

    @property
    def largest_batch(self) -> int:
        return max(map(len, self._lying()))

    def _lying(self) -> list[Tensor]:
        """The images of each batch as they lie there: in bytes where they come from files."""
        kept = [part.pixels if isinstance(part, KeptBatches) else [x for x, _ in part] for part in self._given]
        return [images for batches in kept for images in batches]

    def fingerprint(self) -> str:
        """A short hash of all images and labels: of files' contents where they come from files, else of pixels."""
        return " ".join(
            batches.identify() if isinstance(batches, KeptBatches) else _hash(batches) for batches in self._given
        )

    def _home(self, format: Format) -> torch.device:
        """The accelerator, where all images take less than half of its free memory, else the CPU."""
        if self.device.type != "cuda":
            return self.device
        values = sum(images.numel() for images in self._lying())
        free, _ = torch.cuda.mem_get_info(self.device)
        fits = values * (2 if format.bfloat16 else 4) < free / 2
        return self.device if fits else torch.device("cpu")


def _hash(batches: Sequence[Batch]) -> str:
    told = hashlib.sha256()
    for images, labels in batches:
        for tensor in (images, labels):
            told.update(bytes_of(tensor))
    return told.hexdigest()[:16]


def _part(batches: Sequence[object], fraction: float) -> int:
    return max(1, math.ceil(len(batches) * fraction - 1e-9)) if fraction else 0


def _without_single(batches: Sequence[Batch]) -> Sequence[Batch]:
    """A last batch of a single image joins the one before, for it tells no variance where a map is 1 x 1."""
    if len(batches) < 2 or len(batches[-1][0]) > 1:
        return batches
    images, labels = (torch.cat(parts) for parts in zip(*batches[-2:], strict=True))
    return [*batches[:-2], (images, labels)]
