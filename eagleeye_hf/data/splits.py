"""Disjoint calibration, holdout, training and test images from a `datasets` dataset.

Calibration and holdout images are read once, before anything else, and kept in memory; training images are the rest of
the split, told apart by a hash of their content, so that no shuffling, sharding or duplicate can ever put a held-out
image into training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
from torch import nn

from eagleeye_hf.data.config import AugmentationConfig, HeldOutConfig
from eagleeye_hf.data.holdout import hold_out, warn_of_missing_classes
from eagleeye_hf.data.image_set import ImageSet
from eagleeye_hf.data.rows import MapRows
from eagleeye_hf.data.source import check_classes, check_labels, find_columns, find_commit, open_dataset, open_rows
from eagleeye_hf.data.transforms import build_preprocessing
from eagleeye_hf.errors import EagleEyeError

TEST_SPLITS = ("validation", "test", "val", "valid")


@dataclass(frozen=True, kw_only=True)
class Splits:
    calibration: ImageSet
    """Training images that only recompute BatchNorm statistics."""
    holdout: ImageSet
    """Training images that only score, under the evaluation transform."""
    train: ImageSet
    """All other training images, under the training transform."""
    test: ImageSet
    label_names: tuple[str, ...]
    name: str
    """Hub name, or the name of the local folder."""
    revision: str = ""
    """Commit of a dataset on the Hub."""


def open_splits(
    dataset: str | Path | datasets.DatasetDict | datasets.IterableDatasetDict,
    like: nn.Module,
    *,
    calibration_images: int = HeldOutConfig.calibration_images,
    holdout_images: int = HeldOutConfig.holdout_images,
    seed: int = 0,
    config: str | None = None,
    revision: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    label_names: Sequence[str] | None = None,
    streaming: bool | None = None,
    hflip: bool = AugmentationConfig.hflip,
    augment: str | None = None,
    name: str | None = None,
) -> Splits:
    """Open an image classification dataset as disjoint calibration, holdout, training and test images.

    The same arguments give the same images, whatever the number of processes and workers.

    Args:
        dataset: a Hub name, a local folder that `load_dataset` reads (parquet, images in a folder per class, webdataset
            tars...), or an opened dataset with its splits.
        like: the model whose `pretrained_cfg` gives the transforms, and whose outputs the labels must fit.
        calibration_images, holdout_images: how many training images to set aside, classes in proportion; may be 0.
        seed: decides which, and everything random about the training images.
        config, revision: of a Hub dataset.
        image_column, label_column: found where not given.
        label_names: class names in the order of the model's outputs, instead of the dataset's.
        streaming: read as a stream instead of downloading first; None streams from the Hub and from tars.
        hflip: training images are mirrored at random; turn it off where left and right matter, as in writing.
        augment: RandAugment and its kin on training images, in timm's words, as `rand-m9-mstd0.5`.
        name: what to call the dataset in messages and cards.
    Raises:
        EagleEyeError: the dataset can't be opened, lacks images, labels or a test split, has another number of classes
            than the model has outputs, or too few images.
    """
    HeldOutConfig(calibration_images=calibration_images, holdout_images=holdout_images)
    AugmentationConfig(hflip=hflip, augment=augment)
    commit = find_commit(dataset, revision) if isinstance(dataset, (str, Path)) else None
    opened = open_dataset(dataset, config, commit, streaming) if isinstance(dataset, (str, Path)) else dataset
    name = name or (str(dataset) if isinstance(dataset, (str, Path)) else "dataset")
    if "train" not in opened:
        raise EagleEyeError(f"`dataset={name}` has no split `train`; it has {', '.join(map(str, opened))}")
    test_split = next((split for split in TEST_SPLITS if split in opened), None)
    if test_split is None:
        raise EagleEyeError(
            f"`dataset={name}` needs a split named {' or '.join(TEST_SPLITS)}; it has {', '.join(map(str, opened))}"
        )
    names = tuple(label_names) if label_names is not None else None
    columns, names = find_columns(name, opened["train"], image_column, label_column, names, like)
    check_classes(name, names, like)
    train, test = open_rows(name, opened["train"], columns), open_rows(name, opened[test_split], columns)
    if isinstance(train, MapRows):
        check_labels(name, train.labels(), len(names))
    held, keys, positions = hold_out(name, train, calibration_images + holdout_images, seed)
    check_labels(name, np.array([label for _, label in held]), len(names))
    if holdout_images:
        warn_of_missing_classes(held[:holdout_images], names)  # their beginning is the best balanced
    if isinstance(train, MapRows):
        rest = np.setdiff1d(np.arange(len(train)), sorted(positions))
        train = MapRows(opened["train"], columns, rest)
    training, evaluation = build_preprocessing(like, hflip, augment)
    short = Path(name).resolve().name if Path(name).exists() else name
    return Splits(
        calibration=ImageSet(held[holdout_images:], evaluation, name=short),
        holdout=ImageSet(held[:holdout_images], evaluation, name=short),
        train=ImageSet(train, training, excluded=keys, seed=seed + 1, name=short),
        test=ImageSet(test, evaluation, name=short),
        label_names=names,
        name=short,
        revision=commit or "",
    )
