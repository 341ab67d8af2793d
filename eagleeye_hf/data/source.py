"""Opening a dataset: from the Hub, parquet, image folders or webdataset tars; its columns and its classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
from huggingface_hub import HfApi
from torch import nn

from eagleeye_hf.data.rows import MISSING, Columns, MapRows, StreamRows, describe, is_network_fault
from eagleeye_hf.errors import EagleEyeError
from eagleeye_hf.networks.description import describe_model

LABEL_NAMES = ("label", "labels", "class", "cls", "target", "fine_label")
"""Names of a column of labels that is not described as one, the likeliest first."""


def find_commit(dataset: str | Path, revision: str | None) -> str | None:
    """The commit that a Hub dataset's revision stands for; `revision` itself where the Hub can't tell."""
    if Path(dataset).exists():
        return revision
    try:
        return HfApi().dataset_info(str(dataset), revision=revision).sha
    except Exception:  # not reachable, say, but in the cache: opening it tells
        return revision


def open_dataset(dataset: str | Path, config: str | None, revision: str | None, streaming: bool | None) -> Any:
    """All splits of a dataset."""
    local = Path(dataset).exists()
    if streaming is None:  # tars and the Hub are made for it; local files have random access
        streaming = not local or any(Path(dataset).rglob("*.tar"))
    try:
        return datasets.load_dataset(str(dataset), config, revision=revision, streaming=streaming)
    except Exception as error:
        if not isinstance(error, (OSError, ValueError, datasets.exceptions.DatasetsError)) and not is_network_fault(
            error
        ):
            raise
        raise EagleEyeError(
            f"`dataset={dataset}` can't be opened ({describe(error)}); "
            "give a name on the Hub that you may read, or a local folder"
        ) from error


def find_columns(
    name: str, train: Any, image: str | None, label: str | None, label_names: tuple[str, ...] | None, like: nn.Module
) -> tuple[Columns, tuple[str, ...]]:
    """The columns of images and labels, given or found, and the names of the classes.

    Where the dataset has numbers alone, the names are those that the model brings with it.

    Raises:
        EagleEyeError: they can't be found.
    """
    features = train.features or {}
    listed = ", ".join(f"{key} ({type(feature).__name__})" for key, feature in features.items())
    for argument, column in (("image_column", image), ("label_column", label)):
        if column is not None and column not in features:
            raise EagleEyeError(f"`{argument}={column}` is no column of `dataset={name}`; it has {listed}")
    images = [image] if image else [key for key, feature in features.items() if _is_image(feature)]
    label = label or _find_label(features)
    if len(images) != 1 or label is None:
        raise EagleEyeError(
            f"`dataset={name}` needs one image column and a column of class labels; it has "
            f"{listed or 'no described columns'}; name them with `image_column` and `label_column`"
        )
    return _name_classes(name, train, images[0], label, label_names, like)


def _is_image(feature: Any) -> bool:
    return isinstance(feature, datasets.Image) or (isinstance(feature, dict) and set(feature) == {"bytes", "path"})


def _find_label(features: Any) -> str | None:
    described = [key for key, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    for key in LABEL_NAMES:
        if key in described:
            return key
    if described:
        return described[0]
    return next((key for key in LABEL_NAMES if isinstance(features.get(key), datasets.Value)), None)


def _name_classes(
    name: str, train: Any, image: str, label: str, label_names: tuple[str, ...] | None, like: nn.Module
) -> tuple[Columns, tuple[str, ...]]:
    feature = train.features[label]
    if isinstance(feature, datasets.ClassLabel):
        return Columns(image, label), label_names or tuple(feature.names)
    if "string" not in str(getattr(feature, "dtype", "")):
        outputs = describe_model(like).num_classes or 0
        known = (getattr(like, "pretrained_cfg", None) or {}).get("label_names") or ()
        own = tuple(known) if len(known) == outputs else tuple(map(str, range(outputs)))
        return Columns(image, label), label_names or own
    if label_names is None:
        if not isinstance(train, datasets.Dataset):
            raise EagleEyeError(
                f"`dataset={name}` names its classes in the column {label}, and a stream does not tell which there "
                "are; give them with `label_names`, in the order of the model's outputs"
            )
        label_names = tuple(sorted(train.unique(label)))
    return Columns(image, label, {text: number for number, text in enumerate(label_names)}), label_names


def check_classes(name: str, label_names: tuple[str, ...], like: nn.Module) -> None:
    """Refuse a dataset with another number of classes than the model has outputs."""
    outputs = describe_model(like).num_classes
    if outputs is not None and outputs != len(label_names):
        raise EagleEyeError(
            f"`dataset={name}` has {len(label_names)} classes, but the model has {outputs} outputs; "
            f"train the model on this dataset first (`timm.create_model(..., num_classes={len(label_names)})`)"
        )


def check_labels(name: str, labels: np.ndarray, num_classes: int) -> None:
    """Refuse labels that no output stands for."""
    labels = labels[labels != MISSING]
    if len(labels) and not 0 <= labels.min() <= labels.max() < num_classes:
        raise EagleEyeError(
            f"`dataset={name}` has labels from {labels.min()} to {labels.max()}; "
            f"with {num_classes} classes they run from 0 to {num_classes - 1}"
        )


def open_rows(name: str, dataset: Any, columns: Columns) -> MapRows | StreamRows:
    """The rows of one split."""
    if isinstance(dataset, datasets.Dataset):
        return MapRows(dataset, columns)
    split = (dataset.info.splits or {}).get(str(dataset.split))
    return StreamRows(dataset, columns, name, split.num_examples if split is not None and split.num_examples else None)
