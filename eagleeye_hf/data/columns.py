"""The columns of images and labels of a split, and its rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import datasets

from eagleeye_hf.data.classes import Outputs, list_classes, match_labels
from eagleeye_hf.data.labels import check_labels
from eagleeye_hf.data.rows import Columns, MapRows, StreamRows
from eagleeye_hf.data.source import OpenedDataset, is_image
from eagleeye_hf.errors import EagleEyeError

LABEL_NAMES = ("label", "labels", "class", "cls", "target", "fine_label")
"""Names of a column of labels that is not described as one, the likeliest first."""
LABEL_TYPES = ("bool", "int", "uint", "float", "string", "large_string", "null")
"""Beginnings of the types that labels may have."""
WHOLE = ("ExamplesIterable", "ArrowExamplesIterable")
"""What `datasets` calls a stream of all rows of a split, of which none has been skipped, taken or filtered."""


def find_columns(name: str, features: Any, image: str | None, label: str | None) -> tuple[str, str]:
    """The columns of images and of labels, given or found.

    Raises:
        EagleEyeError: they can't be found.
    """
    features = features or {}
    listed = ", ".join(f"{key} ({type(feature).__name__})" for key, feature in features.items())
    for argument, column in (("image_column", image), ("label_column", label)):
        if column is not None and column not in features:
            raise EagleEyeError(f"`{argument}={column}` is no column of `dataset={name}`; it has {listed}")
    images = [image] if image else [key for key, feature in features.items() if is_image(feature)]
    label = label or find_label(features)
    if len(images) == 1 and label is None and list(features) == images:
        raise EagleEyeError(
            f"`dataset={name}` has images alone and no class labels; in an image folder, every class needs a folder "
            "of its own, and there have to be two or more. Without labels: `eagleeye compress --epochs 0`, or, to "
            "compare with another network, `eagleeye evaluate --teacher`"
        )
    if len(images) != 1 or label is None:
        raise EagleEyeError(
            f"`dataset={name}` needs one image column and a column of class labels; it has "
            f"{listed or 'no described columns'}; name them with `image_column` and `label_column`"
        )
    if not is_label(features[label]):
        raise EagleEyeError(
            f"`label_column={label}` of `dataset={name}` holds no class labels (names or numbers): {features[label]}"
        )
    return images[0], label


def is_label(feature: Any) -> bool:
    """Whether a column may hold class labels."""
    if isinstance(feature, datasets.ClassLabel):
        return True
    return isinstance(feature, datasets.Value) and feature.dtype.startswith(LABEL_TYPES)


def find_label(features: Any) -> str | None:
    described = [key for key, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    for key in LABEL_NAMES:
        if key in described:
            return key
    if described:
        return described[0] if len(described) == 1 else None
    return next((key for key in LABEL_NAMES if isinstance(features.get(key), datasets.Value)), None)


def open_rows(name: str, dataset: Any, columns: Columns) -> MapRows | StreamRows:
    """The rows of one split."""
    if isinstance(dataset, datasets.Dataset):
        return MapRows(dataset, columns)
    whole = type(getattr(dataset, "_ex_iterable", None)).__name__ in WHOLE  # else it may tell of rows that are gone
    split = (dataset.info.splits or {}).get(str(dataset.split)) if whole else None
    return StreamRows(dataset, columns, name, split.num_examples if split is not None and split.num_examples else None)


def find_classes(
    dataset: OpenedDataset,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    label_names: Sequence[str] | None = None,
) -> tuple[str, ...] | None:
    """The classes of a dataset's training images; None where it has none, or a stream that does not tell them.

    Raises:
        EagleEyeError: the columns of images and labels can't be found.
    """
    if "train" not in dataset.splits:
        return None
    train = dataset.splits["train"]
    _, column = find_columns(dataset.name, train.features, image_column, label_column)
    return list_classes(dataset.name, train, column, label_names)


def labelled_rows(
    name: str, split: str, dataset: Any, where: tuple[str, str], outputs: Outputs, whole: bool
) -> tuple[MapRows | StreamRows, tuple[str, ...]]:
    """The rows of a split, their labels checked where that needs no reading of images, and the names of the outputs."""
    columns, names = columns_of(name, dataset, where, outputs, whole)
    rows = open_rows(name, dataset, columns)
    if isinstance(rows, MapRows):
        if not len(rows):
            raise EagleEyeError(f"`dataset={name}`: the split `{split}` has no images")
        check_labels(name, split, rows.labels(), len(names))
    return rows, names


def columns_of(
    name: str, dataset: Any, where: tuple[str, str], outputs: Outputs, whole: bool
) -> tuple[Columns, tuple[str, ...]]:
    labels, names = match_labels(name, dataset, where[1], outputs, whole)
    return Columns(*where, labels=labels), names
