"""Disjoint calibration, holdout, training and test images from a `datasets` dataset.

Calibration and holdout images are read once, before anything else, and kept in memory; training images are the rest of
the split, told apart by a hash of their content, so that no shuffling, sharding or duplicate can ever put a held-out
image into training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
from torch import nn

from eagleeye_hf.data.classes import Outputs, find_outputs
from eagleeye_hf.data.columns import columns_of, find_columns, is_label, labelled_rows, open_rows
from eagleeye_hf.data.config import AugmentationConfig, HeldOutConfig
from eagleeye_hf.data.holdout import hold_out, warn_of_missing_classes
from eagleeye_hf.data.image_set import ImageSet
from eagleeye_hf.data.labels import check_labels, unlabelled
from eagleeye_hf.data.parting import choose_sizes, content_keys, describe_imbalance, part_off_test
from eagleeye_hf.data.rows import MapRows, StreamRows
from eagleeye_hf.data.source import Source, open_together
from eagleeye_hf.data.transforms import build_preprocessing
from eagleeye_hf.data.unlabelled import PLACEHOLDER, TaughtImages, fill_labels, has_labels
from eagleeye_hf.errors import EagleEyeError
from eagleeye_hf.processes import make_in_main

if TYPE_CHECKING:
    from accelerate import Accelerator

TEST_SPLITS = ("validation", "test", "val", "valid", "dev", "eval")
TEST_IMAGES = f"labelled test images in a split named {' or '.join(TEST_SPLITS)}"
COMPARED = 20_000
"""Test images, at most, that are read before training, so that no copy of one is trained on."""
PARTED = "test"
"""How the images are called that are set apart for testing where there is no such split."""


@dataclass(frozen=True, kw_only=True)
class Splits:
    calibration: ImageSet
    """Training images that only recompute BatchNorm statistics."""
    holdout: ImageSet | TaughtImages
    """Training images that only score, under the evaluation transform."""
    train: ImageSet
    """All other training images, under the training transform."""
    found_test: ImageSet | TaughtImages | None = None
    """The test images, if there are any."""
    label_names: tuple[str, ...]
    """In the order of the model's outputs."""
    name: str
    """Hub name, or the name of the local folder."""
    revision: str = ""
    """Commit of a dataset on the Hub."""
    notes: tuple[str, ...] = ()
    """What a user should know of how the images were divided."""
    labelled: bool = True
    """Whether there are labels; those of the images are zeros where not."""
    parted: bool = False
    """Whether the test images were set apart of the training split, for there is no other."""
    augmentation: AugmentationConfig = AugmentationConfig()
    """What is done to training images."""

    def seen_by(self, model: nn.Module) -> Splits:
        """The same images as a network wants them that was trained for others, smaller ones, say."""
        options = self.augmentation
        training, evaluation = build_preprocessing(model, options.hflip, options.augment, options.color_jitter)
        return replace(
            self,
            calibration=self.calibration.seen_through(evaluation),
            holdout=self.holdout.seen_through(evaluation),
            train=self.train.seen_through(training),
            found_test=self.found_test and self.found_test.seen_through(evaluation),
        )

    @property
    def test(self) -> ImageSet | TaughtImages:
        """The test images.

        Raises:
            EagleEyeError: the dataset has none, and was opened without need of them.
        """
        if self.found_test is None:
            raise EagleEyeError(f"`dataset={self.name}` has no {TEST_IMAGES}")
        return self.found_test


def open_splits(
    dataset: Source,
    like: nn.Module,
    *,
    calibration_images: int | None = HeldOutConfig.calibration_images,
    holdout_images: int | None = HeldOutConfig.holdout_images,
    seed: int = 0,
    config: str | None = None,
    revision: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    label_names: Sequence[str] | None = None,
    streaming: bool | None = None,
    hflip: bool = AugmentationConfig.hflip,
    color_jitter: float = AugmentationConfig.color_jitter,
    augment: str | None = None,
    name: str | None = None,
    needs_test: bool = True,
    needs_labels: bool = True,
    accelerator: Accelerator | None = None,
) -> Splits:
    """Open an image classification dataset as disjoint calibration, holdout, training and test images.

    The same arguments give the same images, whatever the number of processes and workers. Classes are matched by name
    with those in the model's `pretrained_cfg["label_names"]`, where both have names; without, the dataset's order is
    taken for that of the model's outputs. The test images are the first labelled split of `validation`, `test`, `val`,
    `valid`, `dev` and `eval`; where there is none, and training images have random access, a fifth of them, the same
    for every seed.

    Args:
        dataset: a Hub name, a local folder that `load_dataset` reads (parquet, images in a folder per class, webdataset
            tars...), a CSV or parquet file, or an opened dataset with its splits.
        like: the model whose `pretrained_cfg` gives the transforms, and whose outputs the labels must fit.
        calibration_images, holdout_images: how many training images to set aside, classes in proportion; may be 0.
            None: 1,024 and 2,048, or a fifth of the training images each where that is less.
        seed: decides which, and everything random about the training images.
        config, revision: of a Hub dataset.
        image_column, label_column: found where not given.
        label_names: the dataset's class names in the order of the model's outputs, instead of those that the model
            brings.
        streaming: read as a stream instead of downloading first; None streams from the Hub and from tars.
        hflip: training images are mirrored at random; turn it off where left and right matter, as in writing.
        color_jitter: brightness, contrast and saturation of training images change by up to this part.
        augment: RandAugment and its kin on training images, in timm's words, as `rand-m9-mstd0.5`.
        name: what to call the dataset in messages and cards.
        needs_test: refuse a dataset without labelled test images.
        needs_labels: refuse a dataset without labels; else it is opened as one that has none.
        accelerator: where given, all its processes call this together, and one reads the held-out images for all.
    Raises:
        EagleEyeError: the dataset can't be opened, lacks images, labels or a test split, has another number of classes
            than the model has outputs or other ones, or too few images.
    """
    HeldOutConfig(calibration_images=calibration_images, holdout_images=holdout_images)
    augmentation = AugmentationConfig(hflip=hflip, color_jitter=color_jitter, augment=augment)
    outputs = find_outputs(like, label_names)
    source = open_together(accelerator, dataset, config, revision, streaming, name)
    labelled = needs_labels or has_labels(source, label_column)
    if not labelled:
        source, label_column = fill_labels(source), PLACEHOLDER
    opened, name, commit = source.splits, source.name, source.commit
    if "train" not in opened:
        raise EagleEyeError(
            f"`dataset={name}` has no split `train`; it has {', '.join(map(str, opened))}. To measure a network on it "
            "no training images are needed: `eagleeye evaluate`, or `open_test`"
        )
    indexed = isinstance(opened["train"], datasets.Dataset)
    if needs_test and not indexed and not any(split in opened for split in TEST_SPLITS):
        raise EagleEyeError(
            f"`dataset={name}` needs {TEST_IMAGES}; it has {', '.join(map(str, opened))}. Downloaded "
            "(`--streaming False`), a fifth of its training images can be set apart"
        )
    where = find_columns(name, opened["train"].features, image_column, label_column)
    train, names = labelled_rows(name, "train", opened["train"], where, outputs, whole=True)
    short = Path(name).resolve().name if Path(name).exists() else name
    training, evaluation = build_preprocessing(like, hflip, augment, color_jitter)
    known = replace(outputs, num=len(names), names=names, owner="the training split")
    test = _find_test(name, opened, where, known, needs_test and not indexed)
    notes, tested, parted = list[str](), frozenset[int](), test is None and isinstance(train, MapRows)
    if isinstance(train, MapRows):
        if test is None:
            train, part = part_off_test(train)
            test = PARTED, part
            whole = len(train) + len(part)
            notes.append(
                f"`dataset={name}` has no labelled test images: {len(part):,} of its {whole:,} training images are set "
                "apart for testing, the same ones whatever the seed"
            )
        told = test[1]
        if isinstance(told, MapRows) and (parted or len(told) <= COMPARED):
            tested = make_in_main(accelerator, lambda: content_keys(told))
        if labelled:
            notes += describe_imbalance(train.labels(), names)
    total = train.num_rows if isinstance(train, StreamRows) else len(train)
    calibration_images, holdout_images = choose_sizes(total, calibration_images, holdout_images)
    num = calibration_images + holdout_images
    held, keys, positions = make_in_main(accelerator, lambda: hold_out(name, train, num, seed, tested))
    if holdout_images and labelled:
        warn_of_missing_classes(held[:holdout_images], names)  # their beginning is the best balanced
    if isinstance(train, MapRows):
        train = train.subset(np.setdiff1d(np.arange(len(train)), sorted(positions)))
    remedy = "ask for some with `{0}_images`, which is 0"
    return Splits(
        calibration=ImageSet(held[holdout_images:], evaluation, name=short, remedy=remedy.format("calibration")),
        holdout=ImageSet(held[:holdout_images], evaluation, name=short, remedy=remedy.format("holdout")),
        train=ImageSet(train, training, excluded=keys | tested, seed=seed + 1, name=short),
        found_test=ImageSet(test[1], evaluation, name=short, split=test[0]) if test else None,
        label_names=names,
        name=short,
        revision=commit or "",
        notes=tuple(notes),
        labelled=labelled,
        parted=parted,
        augmentation=augmentation,
    )


def _find_test(
    name: str, opened: Any, where: tuple[str, str], outputs: Outputs, needed: bool
) -> tuple[str, MapRows | StreamRows] | None:
    """The first test split that has labels, and its name; that of a stream is taken to have some.

    Raises:
        EagleEyeError: there is none, but it is needed; or its classes are others than those of the training split.
    """
    present = [split for split in TEST_SPLITS if split in opened]
    for split in present:
        features = opened[split].features or {}
        if where[0] not in features or not is_label(features.get(where[1])):
            continue
        columns, _ = columns_of(name, opened[split], where, outputs, whole=False)
        rows = open_rows(name, opened[split], columns)
        if isinstance(rows, StreamRows):
            return split, rows
        labels = rows.labels()
        if len(labels) and not unlabelled(labels):
            check_labels(name, split, labels, columns.labels.num_classes)
            return split, rows
    if needed and present:
        raise EagleEyeError(
            f"`dataset={name}`: the test split is unlabelled, since all labels of `{'` and `'.join(present)}` are "
            f"missing or -1; add {TEST_IMAGES}"
        )
    return None
