"""Rows of a dataset: at random, or as a stream that survives faults of the network."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, Protocol

import datasets
import numpy as np
from PIL import Image

from eagleeye_hf.data.images import Row, encode
from eagleeye_hf.data.labels import MISSING, Labels
from eagleeye_hf.errors import EagleEyeError

SHUFFLE_BUFFER = 1_000
"""Images that a stream keeps to draw from."""
OPEN_SHARDS = 10
"""Shards from which it draws at a time."""
SHARDS_EACH = 4
"""Shards for each process from which on processes share them while they train: so that they end at nearly one time."""
BLOCK = 32
"""Rows that are read at a time."""
RETRIES = 5
RETRY_SECONDS = 1.0
"""First pause after a fault of the network, doubled each time; `datasets` has retried for minutes before."""
NETWORK_PACKAGES = {"aiohttp", "httpx", "httpx2", "huggingface_hub", "requests", "urllib3", "fsspec", "s3fs", "gcsfs"}


@dataclass(frozen=True)
class Columns:
    """Where a split keeps images and labels, and what the labels stand for."""

    image: str
    label: str
    labels: Labels

    def row(self, row: Mapping[str, Any]) -> Row:
        """
        Raises:
            EagleEyeError: no output of the model stands for the label.
        """
        image = row[self.image]
        if isinstance(image, Image.Image):  # a stream that was filtered hands out decoded ones
            image = {"bytes": encode(image), "path": None}
        return image, self.labels.checked(row[self.label])

    def encoded(self, dataset: Any) -> Any:
        """Only these columns, images left as they are stored, whatever format or transform the caller has set."""
        own = dataset.with_format(None).select_columns([self.image, self.label])
        return own.cast_column(self.image, datasets.Image(decode=False))


class IndexedRows(Protocol):
    """A list of rows, or something like it."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Row: ...

    def __iter__(self) -> Iterator[Row]: ...


class MapRows:
    """Rows with random access."""

    def __init__(self, dataset: datasets.Dataset, columns: Columns, indices: np.ndarray | None = None) -> None:
        self.dataset, self.columns = columns.encoded(dataset), columns
        self.indices = np.arange(len(dataset)) if indices is None else indices

    def subset(self, places: np.ndarray) -> MapRows:
        """These of the rows."""
        part = copy.copy(self)
        part.indices = self.indices[places]
        return part

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Row:
        return self.columns.row(self.dataset[int(self.indices[index])])

    def __iter__(self) -> Iterator[Row]:
        return (self[index] for index in range(len(self)))

    def labels(self) -> np.ndarray:
        """Numbers of outputs, images not read and ranges not checked; `MISSING` where there is none."""
        column = self.dataset.select_columns([self.columns.label]).with_format("arrow")[:][self.columns.label]
        return self.columns.labels.numbers(column)[self.indices]

    def classes(self) -> np.ndarray:
        """Which rows have the same label, whatever the outputs of a model are; `MISSING` where there is none."""
        return raw_classes(self.dataset, self.columns.label)[self.indices]


def raw_classes(dataset: datasets.Dataset, label: str) -> np.ndarray:
    """Numbers of the different labels of a column in their order; `MISSING` where there is none."""
    values = dataset.with_format("arrow")[:][label].to_pylist()
    numbers = {value: number for number, value in enumerate(sorted(set(values) - {None, "", -1}))}
    return np.array([numbers.get(value, MISSING) for value in values], dtype=np.int64)


class StreamRows:
    """Rows in the order of a stream, or nearly at random."""

    def __init__(self, dataset: datasets.IterableDataset, columns: Columns, name: str, num_rows: int | None) -> None:
        self.dataset, self.columns, self.name = columns.encoded(dataset), columns, name
        self.num_rows = num_rows
        self._finer: StreamRows | None = None

    def divided(self, parts: int, workers: int = 1) -> StreamRows:
        """The same rows in finer shards, where there are too few for so many readers: a parquet file by row groups."""
        if self.dataset.num_shards >= parts * max(1, workers, SHARDS_EACH if parts > 1 else 1):
            return self
        if self._finer is None:
            self._finer = copy.copy(self)
            self._finer.dataset = self.dataset.reshard()
        return self._finer

    def num_workers(self, wanted: int, parts: int, shuffled: bool) -> int:
        """How many workers can share a part of the rows: each needs a shard of its own."""
        shards = self.dataset.num_shards
        return min(wanted, -(-shards // parts) if self._shares_shards(parts, shuffled) else shards)

    def _shares_shards(self, parts: int, shuffled: bool) -> bool:
        """Whether parts are whole shards; in training they have to be of nearly one size."""
        return parts > 1 and self.dataset.num_shards >= parts * (SHARDS_EACH if shuffled else 1)

    def __iter__(self) -> Iterator[Row]:
        return self.rows(None)

    def rows(self, seed: int | None, part: tuple[int, int] = (0, 1), worker: tuple[int, int] = (0, 1)) -> Iterator[Row]:
        """A worker's portion of a part of all rows.

        Args:
            seed: shuffles the shards and, through a buffer, the rows; None keeps the order.
            part: (which, of how many). Whole shards where there are plenty, else every n-th row.
            worker: (which, of how many); whole shards.
        """
        which, parts = part
        random = None if seed is None else np.random.default_rng((seed, worker[0]))
        shards: Sequence[int] = range(self.dataset.num_shards)
        if seed is not None:
            shards = np.random.default_rng(seed).permutation(len(shards)).tolist()
        if self._shares_shards(parts, seed is not None):
            shards, which, parts = shards[which::parts], 0, 1
        opened = (self._shard(number) for number in shards[worker[0] :: worker[1]])
        rows = chain.from_iterable(opened) if random is None else mix_rows(interleave_rows(opened, random), random)
        return (self.columns.row(row) for row in islice(rows, which, None, parts))

    def _shard(self, number: int) -> Iterator[Any]:
        """Rows of one shard, read by this process alone, whatever worker it is."""
        several = self.dataset.num_shards
        shard = self.dataset.shard(several, number, contiguous=False) if several > 1 else self.dataset

        def read() -> Iterator[Any]:
            for block in shard.iter(BLOCK):
                names = list(block)
                yield from (dict(zip(names, row, strict=True)) for row in zip(*block.values(), strict=True))

        return retry_rows(read, self.name)


def interleave_rows(shards: Iterator[Iterator[Any]], random: np.random.Generator) -> Iterator[Any]:
    """Rows of a few shards at a time, each next one from any of them."""
    opened = list(islice(shards, OPEN_SHARDS))
    while opened:
        for place in random.integers(0, len(opened), size=BLOCK).tolist():
            row = next(opened[place], None)
            if row is not None:
                yield row
                continue
            opened[place : place + 1] = islice(shards, 1)
            break


def mix_rows(rows: Iterable[Any], random: np.random.Generator) -> Iterator[Any]:
    """Each row changes places with one that waits in a buffer."""
    waiting = list(islice(rows := iter(rows), SHUFFLE_BUFFER))
    for row in rows:
        place = int(random.integers(len(waiting)))
        yield waiting[place]
        waiting[place] = row
    yield from (waiting[place] for place in random.permutation(len(waiting)))


def retry_rows(open_rows: Callable[[], Iterable[Any]], name: str) -> Iterator[Any]:
    """Iterate; after a fault of the network start again behind the last row, a bounded number of times in a row.

    Raises:
        EagleEyeError: the network stays away, or a file is damaged.
    """
    done, failures = 0, 0
    while True:
        try:
            for row in islice(open_rows(), done, None):
                yield row
                done, failures = done + 1, 0
            return
        except Exception as error:
            if not is_network_fault(error):
                raise EagleEyeError(
                    f"`dataset={name}`: the stream can't be read beyond {done} rows, for a file of it is damaged "
                    f"({describe(error)}); get that file anew, or leave it out"
                ) from error
            failures += 1
            if failures > RETRIES:
                raise EagleEyeError(
                    f"`dataset={name}`: the stream broke off after {done} rows, and {RETRIES} further tries failed "
                    f"({describe(error)}); check the connection and run again, or download first (`streaming=False`)"
                ) from error
            time.sleep(RETRY_SECONDS * 2 ** (failures - 1))


def is_network_fault(error: BaseException) -> bool:
    """Whether trying again may help: the error, or one that it came from, is about the network."""
    packages = {base.__module__.split(".")[0] for base in type(error).__mro__}
    if isinstance(error, (ConnectionError, TimeoutError)) or packages & NETWORK_PACKAGES:
        return True
    return error.__cause__ is not None and is_network_fault(error.__cause__)


def describe(error: BaseException) -> str:
    """One line about an error of a library."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
