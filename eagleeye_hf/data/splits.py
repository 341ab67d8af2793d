"""Disjoint calibration, holdout, training and test images from a `datasets` dataset.

Images stay encoded until they are needed. Calibration and holdout images are read once, before anything else, and kept
in memory; training images are the rest of the split, told apart by a hash of their content, so that no shuffling,
sharding or duplicate can ever put a held-out image into training.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, get_worker_info
from torch.utils.data import IterableDataset as TorchStream

from eagleeye_hf.data.transforms import Transform, build_transforms, decode_image
from eagleeye_hf.errors import EagleEyeError

Row = tuple[Any, int]
Batch = tuple[Tensor, Tensor]
TEST_SPLITS = ("validation", "test", "val", "valid")
SHUFFLE_BUFFER = 10_000


class ImageSet:
    """Labelled images, encoded, with the transform under which they are seen."""

    def __init__(
        self, rows: Callable[[int], Iterable[Row]], transform: Transform, num_images: int | None = None
    ) -> None:
        self._rows, self.transform, self._num_images = rows, transform, num_images
        self._cache: tuple[Tensor, Tensor] | None = None

    def count(self) -> int:
        """How many images there are; where the dataset doesn't say, its rows are counted once, without decoding."""
        if self._num_images is None:
            self._num_images = sum(1 for _ in self._rows(0))
        return self._num_images

    def batches(self, batch_size: int = 128, part: tuple[int, int] = (0, 1)) -> Iterator[Batch]:
        """Decode batch by batch, in order.

        Args:
            part: (this process, number of processes); each gets every n-th batch.
        """
        rows = iter(self._rows(0))
        number = 0
        while chunk := list(islice(rows, batch_size)):
            if number % part[1] == part[0]:
                yield collate(chunk, self.transform)
            number += 1

    def cached_batches(self, batch_size: int = 128) -> list[Batch]:
        """The same as a list of tensors, decoded once and kept."""
        if self._cache is None:
            parts = list(self.batches(batch_size))
            self._cache = torch.cat([images for images, _ in parts]), torch.cat([labels for _, labels in parts])
        images, labels = self._cache
        return list(zip(images.split(batch_size), labels.split(batch_size), strict=True))

    def loader(self, batch_size: int, epoch: int = 0, num_workers: int = 0) -> DataLoader[Batch]:
        """Shuffled batches of one epoch, the last ragged one left out."""
        return DataLoader(
            _Stream(self._rows, epoch),
            batch_size=batch_size,
            num_workers=num_workers,
            drop_last=True,
            collate_fn=_Collate(self.transform),
        )


class _Stream(TorchStream[Any]):
    def __init__(self, rows: Callable[[int], Iterable[Row]], epoch: int) -> None:
        self.rows, self.epoch = rows, epoch

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows(self.epoch))


class _Collate:
    def __init__(self, transform: Transform) -> None:
        self.transform = transform

    def __call__(self, rows: list[Row]) -> Batch:
        return collate(rows, self.transform)


def collate(rows: list[Row], transform: Transform) -> Batch:
    """Decode, transform and stack."""
    images = torch.stack([transform(decode_image(image)) for image, _ in rows])
    return images, torch.tensor([label for _, label in rows])


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


def open_splits(
    dataset: str | Path | datasets.DatasetDict | datasets.IterableDatasetDict,
    like: nn.Module,
    *,
    calibration_images: int = 1024,
    holdout_images: int = 2048,
    seed: int = 0,
    config: str | None = None,
    revision: str | None = None,
    streaming: bool = True,
    hflip: bool = True,
    name: str | None = None,
) -> Splits:
    """Open an image classification dataset as disjoint calibration, holdout, training and test images.

    Args:
        dataset: a Hub name, a local folder that `load_dataset` reads (parquet, images...), or an opened dataset with
            its splits.
        like: the model whose `pretrained_cfg` gives the transforms, and whose outputs the labels must fit.
        calibration_images, holdout_images: how many training images to set aside.
        seed: decides which.
        config, revision: of a Hub dataset.
        streaming: read as a stream instead of downloading first.
        hflip: training images are mirrored at random; turn it off where left and right matter, as in writing.
        name: what to call the dataset in messages and cards.
    Raises:
        EagleEyeError: the dataset can't be opened, lacks images, labels or a test split, has another number of classes
            than the model has outputs, or too few images.
    """
    opened = _open(dataset, config, revision, streaming) if isinstance(dataset, (str, Path)) else dataset
    name = name or (str(dataset) if isinstance(dataset, (str, Path)) else "dataset")
    if "train" not in opened:
        raise EagleEyeError(f"`dataset={name}` has no split `train`; it has {', '.join(map(str, opened))}")
    test_split = next((split for split in TEST_SPLITS if split in opened), None)
    if test_split is None:
        raise EagleEyeError(
            f"`dataset={name}` needs a split named {' or '.join(TEST_SPLITS)}; it has {', '.join(map(str, opened))}"
        )
    for key, value in (("calibration_images", calibration_images), ("holdout_images", holdout_images)):
        if value < 1:
            raise EagleEyeError(f"`{key}` is a positive number of images; got {value}")
    image_column, label_column, label_names = _find_columns(name, opened["train"])
    _check_classes(name, label_names, like)
    train = _rows(opened["train"], image_column, label_column)
    test = _rows(opened[test_split], image_column, label_column)
    total = _num_rows(opened["train"])
    held = _hold_out(name, train, calibration_images + holdout_images, seed, total)
    held_keys = {_key(image) for image, _ in held}
    training, evaluation = build_transforms(like, hflip)
    return Splits(
        calibration=ImageSet(lambda epoch: held[:calibration_images], evaluation, calibration_images),
        holdout=ImageSet(lambda epoch: held[calibration_images:], evaluation, holdout_images),
        train=ImageSet(
            lambda epoch: _train_rows(train, held_keys, seed, epoch),
            training,
            None if total is None else total - len(held),
        ),
        test=ImageSet(lambda epoch: test.rows(), evaluation),
        label_names=label_names,
        name=Path(name).resolve().name if Path(name).exists() else name,
    )


@dataclass(frozen=True)
class _Rows:
    dataset: Any
    image: str
    label: str

    def rows(self, dataset: Any = None) -> Iterator[Row]:
        dataset = self.dataset if dataset is None else dataset
        worker = get_worker_info()
        if worker is not None and isinstance(dataset, datasets.Dataset):  # streams share themselves out
            dataset = dataset.shard(worker.num_workers, worker.id)
        for row in dataset:
            yield row[self.image], row[self.label]

    def shuffled(self, seed: int) -> Iterator[Row]:
        streamed = isinstance(self.dataset, datasets.IterableDataset)
        return self.rows(self.dataset.shuffle(seed=seed, **({"buffer_size": SHUFFLE_BUFFER} if streamed else {})))


def _open(dataset: str | Path, config: str | None, revision: str | None, streaming: bool) -> Any:
    try:
        return datasets.load_dataset(str(dataset), config, revision=revision, streaming=streaming)
    except (FileNotFoundError, ValueError, ConnectionError, OSError) as error:
        raise EagleEyeError(
            f"`dataset={dataset}` can't be opened ({type(error).__name__}: {str(error).splitlines()[0]}); "
            "give a name on the Hub that you may read, or a local folder"
        ) from error


def _find_columns(name: str, train: Any) -> tuple[str, str, tuple[str, ...]]:
    features = train.features or {}
    images = [key for key, feature in features.items() if isinstance(feature, datasets.Image)]
    labels = [key for key, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    if len(images) != 1 or not labels:
        columns = ", ".join(f"{key} ({type(feature).__name__})" for key, feature in features.items())
        raise EagleEyeError(
            f"`dataset={name}` needs one image column and a column of class labels; it has "
            f"{columns or 'no described columns'}"
        )
    label = "label" if "label" in labels else "fine_label" if "fine_label" in labels else labels[0]
    return images[0], label, tuple(features[label].names)


def _check_classes(name: str, label_names: tuple[str, ...], like: nn.Module) -> None:
    outputs = getattr(like, "num_classes", len(label_names))
    if outputs != len(label_names):
        raise EagleEyeError(
            f"`dataset={name}` has {len(label_names)} classes, but the model has {outputs} outputs; "
            f"train the model on this dataset first (`timm.create_model(..., num_classes={len(label_names)})`)"
        )


def _rows(dataset: Any, image: str, label: str) -> _Rows:
    dataset = dataset.select_columns([image, label])
    return _Rows(dataset.cast_column(image, datasets.Image(decode=False)), image, label)


def _num_rows(dataset: Any) -> int | None:
    if isinstance(dataset, datasets.Dataset):
        return len(dataset)
    split = (dataset.info.splits or {}).get(str(dataset.split))
    return split.num_examples if split is not None and split.num_examples else None


def _key(image: Any) -> int | str:
    return zlib.crc32(image["bytes"]) if image["bytes"] is not None else str(image["path"])


def _hold_out(name: str, train: _Rows, num: int, seed: int, total: int | None) -> list[Row]:
    """The first distinct images of a shuffled pass."""
    if total is not None and total <= num:
        raise EagleEyeError(
            f"`dataset={name}` has {total} training images; "
            f"`calibration_images` and `holdout_images` ask for {num} of them"
        )
    held: dict[int | str, Row] = {}
    for row in train.shuffled(seed):
        held.setdefault(_key(row[0]), row)
        if len(held) == num:
            return list(held.values())
    raise EagleEyeError(
        f"`dataset={name}` has only {len(held)} distinct training images; "
        f"`calibration_images` and `holdout_images` ask for {num} of them"
    )


def _train_rows(train: _Rows, held: set[int | str], seed: int, epoch: int) -> Iterator[Row]:
    for row in train.shuffled(seed + 1 + epoch):
        if _key(row[0]) not in held:
            yield row
