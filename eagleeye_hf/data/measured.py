"""One split of a dataset, to measure a network on; no training images are needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from torch import nn

from eagleeye_hf.data.classes import find_outputs
from eagleeye_hf.data.columns import find_columns, labelled_rows
from eagleeye_hf.data.image_set import ImageSet
from eagleeye_hf.data.parting import part_off_test
from eagleeye_hf.data.rows import MapRows, raw_classes
from eagleeye_hf.data.source import Source, open_any
from eagleeye_hf.data.splits import PARTED, TEST_SPLITS
from eagleeye_hf.data.transforms import build_preprocessing
from eagleeye_hf.data.unlabelled import PLACEHOLDER, TaughtImages, fill_labels, has_labels
from eagleeye_hf.errors import EagleEyeError

RENAMED = {"val": "validation", "valid": "validation", "dev": "validation", "eval": "test"}
"""What `datasets` makes of the names of folders and files."""


@dataclass(frozen=True, kw_only=True)
class MeasuredSplit:
    """One split, to measure a network on."""

    images: ImageSet | TaughtImages
    """All of it, under the evaluation transform."""
    split: str
    """Its name in the dataset."""
    label_names: tuple[str, ...]
    """In the order of the model's outputs."""
    name: str
    """Hub name, or the name of the local folder."""
    revision: str = ""
    """Commit of a dataset on the Hub."""
    notes: tuple[str, ...] = ()
    """What a user should know of these images."""


def open_test(
    dataset: Source | datasets.Dataset | datasets.IterableDataset,
    like: nn.Module,
    *,
    split: str | None = None,
    config: str | None = None,
    revision: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    label_names: Sequence[str] | None = None,
    streaming: bool | None = None,
    name: str | None = None,
    teacher: nn.Module | None = None,
) -> MeasuredSplit:
    """Open one split of an image classification dataset, to measure a network on; no training images are needed.

    Args:
        dataset: as for `open_splits`, or one opened split.
        split: its name; None takes the first of `validation`, `test`, `val`, `valid`, `dev` and `eval` that there is,
            or the only split. `test`, where there is but a training split: the fifth that `open_splits` sets apart.
        like, config, revision, image_column, label_column, label_names, streaming, name: as for `open_splits`.
        teacher: a network whose decisions stand for labels, which the dataset need not have.
    Raises:
        EagleEyeError: the dataset can't be opened, there is no such split, it is unlabelled, or its classes are others
            than those of the model.
    """
    outputs = find_outputs(like, label_names)
    if isinstance(dataset, (datasets.Dataset, datasets.IterableDataset)):
        dataset = {str(dataset.split or split or "test"): dataset}
    source = open_any(dataset, config, revision, streaming, name)
    parted = split == PARTED and list(source.splits) == ["train"]
    parted = parted and isinstance(source.splits["train"], datasets.Dataset)
    classes = None
    if teacher is not None:
        if parted and has_labels(source, label_column):  # the same fifth as with them
            train = source.splits["train"]
            classes = raw_classes(train, find_columns(source.name, train.features, image_column, label_column)[1])
        source, label_column = fill_labels(source), PLACEHOLDER
    opened, name, commit = source.splits, source.name, source.commit
    notes: tuple[str, ...] = ()
    if split is None and list(opened) == ["train"] and isinstance(opened["train"], datasets.Dataset):
        notes = (
            f"`dataset={name}` has no test split, so all of it is measured, images that a run trained on among them; "
            "`--split test` takes the fifth that runs set apart",
        )
    split = "train" if parted else _choose_split(name, opened, split)
    where = find_columns(name, opened[split].features, image_column, label_column)
    rows, names = labelled_rows(name, split, opened[split], where, outputs, whole=False)
    if parted and isinstance(rows, MapRows):
        split, rows = PARTED, part_off_test(rows, classes)[1]
    short = Path(name).resolve().name if Path(name).exists() else name
    own = build_preprocessing(like)[1]
    seen = ImageSet(rows, own, name=short, split=split)
    images: ImageSet | TaughtImages = seen
    if teacher is not None:
        theirs = build_preprocessing(teacher)[1]
        images = TaughtImages(seen, teacher, None if theirs.identity == own.identity else seen.seen_through(theirs))
    return MeasuredSplit(images=images, split=split, label_names=names, name=short, revision=commit or "", notes=notes)


def _choose_split(name: str, opened: Any, split: str | None) -> str:
    listed = ", ".join(map(str, opened))
    if split is not None:
        found = next((known for known in (split, RENAMED.get(split)) if known in opened), None)
        if found is None:
            fifth = f", and `{PARTED}` would be the fifth that runs set apart" if list(opened) == ["train"] else ""
            raise EagleEyeError(f"`split={split}` is no split of `dataset={name}`; it has {listed}{fifth}")
        return found
    if len(opened) == 1:
        return str(next(iter(opened)))
    found = next((known for known in TEST_SPLITS if known in opened), None)
    if found is None:
        raise EagleEyeError(f"`dataset={name}` has the splits {listed}; name the one to measure with `split`")
    return found
