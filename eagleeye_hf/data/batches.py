"""Batches for one process: which images, in which order, decoded in workers, whatever can't be decoded left out.

Every image is in exactly one batch of an epoch, on exactly one process. Random crops depend on (seed, epoch, content of
the image) alone, so neither the number of processes nor that of workers changes what the network sees of an image.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from eagleeye_hf.data.images import Row, content_key, decode_image, read_bytes
from eagleeye_hf.data.rows import IndexedRows, StreamRows, describe
from eagleeye_hf.data.transforms import Transform
from eagleeye_hf.errors import EagleEyeError

NO_LABEL = "it has no label"
"""The problem of an image of which the class is not known."""


@dataclass(frozen=True, kw_only=True)
class Portion:
    """Which part of an epoch one process takes."""

    batch_size: int
    """Images per step, all processes and micro-batches together."""
    process: int = 0
    num_processes: int = 1
    micro_batches: int = 1
    """Pieces of a step that are fed one after another."""
    start: int = 0
    """Steps that are done already."""

    @property
    def micro_size(self) -> int:
        return max(1, self.batch_size // (self.num_processes * self.micro_batches))


def count_steps(num_images: int, batch_size: int) -> int:
    """Steps of an epoch, the last not full."""
    return -(-num_images // batch_size)


def cut_evenly(num_images: int, batch_size: int) -> list[np.ndarray]:
    """Indices of all batches, in order; their sizes differ by at most one image, so that there is no tiny last one."""
    if not num_images:
        return []
    return np.array_split(np.arange(num_images), count_steps(num_images, batch_size))


def plan_epoch(num_images: int, seed: int, portion: Portion) -> list[np.ndarray]:
    """Indices of this process's micro-batches.

    The steps of an epoch differ by at most one image, so that there is no tiny last one.
    """
    order = np.random.default_rng(seed).permutation(num_images)
    steps = np.array_split(order, count_steps(num_images, portion.batch_size))[portion.start :]
    own = (step[portion.process :: portion.num_processes] for step in steps)
    return [micro for step in own for micro in np.array_split(step, portion.micro_batches)]


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """A batch as it comes from a worker."""

    pixels: Tensor
    """Bytes, shape `(N, channels, height, width)`."""
    labels: Tensor
    problems: list[str]
    """What could not be decoded, and why."""
    failure: str = ""
    """Why the stream ended."""

    def pin_memory(self) -> Decoded:
        """For the `DataLoader`, so that the copy to a GPU doesn't wait."""
        return replace(self, pixels=self.pixels.pin_memory(), labels=self.labels.pin_memory())


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """From rows to a batch."""

    transform: Transform
    mode: str
    excluded: frozenset[int] = frozenset()
    """Content keys of held-out images."""
    seed: int | None = None
    """Of the random crops; None where there are none."""

    def __call__(self, rows: Iterable[Row]) -> Decoded:
        images, labels, problems = [], [], []
        with own_randomness():
            for image, label in rows:
                if label is None:
                    problems.append(f"{(image or {}).get('path') or 'an image'}: {NO_LABEL}")
                    continue
                try:
                    data = read_bytes(image)
                    if self.excluded or self.seed is not None:
                        key = content_key(data)
                        if key in self.excluded:
                            continue
                        if self.seed is not None:
                            seed_everything(key ^ self.seed)
                    images.append(self.transform(decode_image(data, self.mode)))
                    labels.append(label)
                except Exception as error:  # a broken file raises anything; it is counted and reported
                    problems.append(f"{(image or {}).get('path') or 'an image'}: {describe(error)}")
        stacked = torch.stack([torch.as_tensor(image) for image in images]) if images else torch.empty(0)
        return Decoded(pixels=stacked, labels=torch.tensor(labels, dtype=torch.long), problems=problems)


@contextmanager
def own_randomness() -> Iterator[None]:
    """Leave the random states of the process as they were."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002  timm draws from it
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.set_rng_state(states[2])


def seed_everything(seed: int) -> None:
    """Seed what transforms draw from."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.default_generator.manual_seed(seed % 2**63)


def load_indexed(
    rows: IndexedRows, batches: Sequence[np.ndarray], decoder: Decoder, num_workers: int
) -> Iterable[Decoded]:
    """Decode these batches of rows with random access."""
    return _loader(_Indexed(rows, decoder), num_workers, list(batches))


def load_stream(
    rows: StreamRows, seed: int | None, portion: Portion, decoder: Decoder, num_workers: int
) -> Iterable[Decoded]:
    """Decode a stream; micro-batches that are done already are passed over without decoding."""
    workers = rows.num_workers(num_workers, portion.num_processes)
    return _loader(_Streamed(rows, seed, portion, decoder), workers, None)


def _loader(dataset: Dataset[Decoded], num_workers: int, batches: list[np.ndarray] | None) -> Iterator[Decoded]:
    with warnings.catch_warnings():  # who asks for more workers than there are cores gets them
        warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
        loader: DataLoader[Decoded] = DataLoader(
            dataset,
            sampler=batches,
            batch_size=None,
            num_workers=num_workers,
            generator=torch.Generator(),  # so that starting workers draws nothing from the global one
            pin_memory=torch.cuda.is_available(),
        )
        decoded = iter(loader)
    yield from decoded


class _Indexed(Dataset[Decoded]):
    def __init__(self, rows: IndexedRows, decoder: Decoder) -> None:
        self.rows, self.decoder = rows, decoder

    def __getitem__(self, indices: np.ndarray) -> Decoded:
        return self.decoder(self.rows[int(index)] for index in indices)


class _Streamed(IterableDataset[Decoded]):
    def __init__(self, rows: StreamRows, seed: int | None, portion: Portion, decoder: Decoder) -> None:
        self.rows, self.seed, self.portion, self.decoder = rows, seed, portion, decoder

    def __iter__(self) -> Iterator[Decoded]:
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        done = self.portion.start * self.portion.micro_batches
        passed = len(range(number, done, workers))  # workers take turns
        rows = self.rows.rows(self.seed, (self.portion.process, self.portion.num_processes))
        try:
            for chunk in islice(even_chunks(rows, self.portion.micro_size), passed, None):
                yield self.decoder(chunk)
        except EagleEyeError as error:  # in a worker it would become a traceback
            yield Decoded(pixels=torch.empty(0), labels=torch.empty(0), problems=[], failure=str(error))


def even_chunks(rows: Iterator[Row], size: int) -> Iterator[list[Row]]:
    """Lists of `size` rows; a last single row joins the list before, since BatchNorm can't train on one image."""
    chunk = list(islice(rows, size))
    while chunk:
        after = list(islice(rows, size))
        if len(after) == 1 and size > 1:
            chunk, after = chunk + after, []
        yield chunk
        chunk = after
