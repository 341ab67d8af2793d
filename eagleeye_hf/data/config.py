"""Which images, how they are read and what they are used for."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from eagleeye_hf.configs import Within, check_fields
from eagleeye_hf.errors import EagleEyeError

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
"""That this process may use."""
SHARE = max(1, CORES // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
"""Those of one process, where a launcher started several on this machine."""


@dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """Which dataset, and how it is read."""

    dataset: str = "ILSVRC/imagenet-1k"
    """Hub name, local folder, or table of files (CSV) of an image classification dataset."""
    dataset_config: str | None = None
    """Configuration of a dataset that has several."""
    dataset_revision: str | None = None
    """Branch, tag or commit of a Hub dataset."""
    streaming: bool | None = None
    """Read as a stream instead of downloading first; None: local tars, and what is on the Hub unless training reads it
    more than once."""
    image_column: str | None = None
    """Column of the images, where it can't be found."""
    label_column: str | None = None
    """Column of the labels, where it can't be found."""
    label_names: tuple[str, ...] | None = None
    """The dataset's class names in the order of the outputs, where the model brings none or others."""
    num_workers: Annotated[int, Within("[0, inf)")] = min(16, SHARE)
    """Processes that decode images, per process of the run; by default its part of the machine's cores."""

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.dataset:
            raise EagleEyeError("`dataset` is a Hub name or a folder; got an empty text")

    def settle(self, epochs: int | None) -> DatasetConfig:
        """The same; a dataset on the Hub is to be downloaded where training reads it more than once.

        Args:
            epochs: None stands for many.
        """
        if self.streaming is not None or epochs in (0, 1) or Path(self.dataset).exists():
            return self
        return replace(self, streaming=False)

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of `open_splits` and `open_test`."""
        names = ("dataset", "streaming", "image_column", "label_column", "label_names")
        own = {name: getattr(self, name) for name in names}
        return own | {"config": self.dataset_config, "revision": self.dataset_revision}


@dataclass(frozen=True, kw_only=True)
class HeldOutConfig:
    """Which training images are set aside."""

    calibration_images: Annotated[int, Within("[0, inf)")] | None = None
    """Training images that recompute BatchNorm statistics, and by which channels are chosen and layers repaired; None:
    1,024, or a fifth of the training images where that is less."""
    holdout_images: Annotated[int, Within("[0, inf)")] | None = None
    """Training images that score candidates, the result and epochs; None: 2,048, or a fifth of the training images."""

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class AugmentationConfig:
    """How training sees its images."""

    hflip: bool = True
    """Mirror training images at random; `--no-hflip` where left and right matter, as in writing."""
    color_jitter: Annotated[float, Within("[0, inf)")] = 0.0
    """Change brightness, contrast and saturation of training images by up to this part, as 0.4; it takes as long as
    decoding."""
    augment: str | None = None
    """RandAugment and its kin in timm's words, as rand-m9-mstd0.5; instead of colour jitter."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.augment is not None:
            check_augment(self.augment)


def check_augment(augment: str) -> None:
    """
    Raises:
        EagleEyeError: timm does not understand it.
    """
    from timm.data.transforms_factory import create_transform  # takes a second to import

    try:
        create_transform(32, is_training=True, auto_augment=augment)
    except (AssertionError, KeyError, ValueError, IndexError) as error:
        raise EagleEyeError(
            f"`augment={augment}` is not understood by timm ({error}); an example is rand-m9-mstd0.5"
        ) from error
