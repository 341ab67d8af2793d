"""Batches for one process: which images, in which order, decoded in workers, whatever can't be decoded left out.

Every image is in exactly one batch of an epoch, on exactly one process. Random crops depend on (seed, epoch, content of
the image) alone, so neither the number of processes nor that of workers changes what the network sees of an image.
"""

from __future__ import annotations

import random
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice

import fsspec.asyn
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, get_worker_info

from eagleeye_hf.data.fast import FastTransform
from eagleeye_hf.data.images import Row, content_key, decode_image, read_bytes
from eagleeye_hf.data.rows import IndexedRows, StreamRows, describe
from eagleeye_hf.data.transforms import Transform
from eagleeye_hf.errors import EagleEyeError

MEMORY = re.compile(r" <_io\.\w+ object at 0x[0-9a-f]+>")
"""What PIL calls an image that is not a file of its own; that says nothing to anybody."""
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
    whole_steps: bool = False
    """Processes take whole steps in turn, instead of a part of each."""

    @property
    def micro_size(self) -> int:
        parts = 1 if self.whole_steps else self.num_processes
        return max(1, self.batch_size // (parts * self.micro_batches))


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
    if portion.whole_steps:
        own = steps[portion.process :: portion.num_processes]
    else:
        own = [step[portion.process :: portion.num_processes] for step in steps]
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
    over: bool = False
    """Whether this worker has no images left."""

    def pin_memory(self) -> Decoded:
        """For the `DataLoader`, so that the copy to a GPU doesn't wait."""
        return replace(self, pixels=self.pixels.pin_memory(), labels=self.labels.pin_memory())


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """From rows to a batch."""

    transform: Transform
    fast: FastTransform | None = None
    mode: str
    excluded: frozenset[int] = frozenset()
    """Content keys of held-out images."""

    def __call__(self, rows: Iterable[Row], seed: int | None) -> Decoded:
        """
        Args:
            seed: of the random crops; None where there are none.
        """
        images, labels, problems = [], [], []
        with own_randomness():
            for row, label in rows:
                path = (row or {}).get("path") or "an image"
                if label is None:
                    problems.append(f"{path}: {NO_LABEL}")
                    continue
                try:
                    data = read_bytes(row)
                    if self.excluded or seed is not None:
                        key = content_key(data)
                        if key in self.excluded:
                            continue
                        if seed is not None:
                            seed_everything(key ^ seed)
                    image = decode_image(data, self.mode, self.fast)
                    images.append(image if self.fast is not None else self.transform(image))
                    labels.append(label)
                except Exception as error:  # a broken file raises anything; it is counted and reported
                    problems.append(f"{path}: {MEMORY.sub('', describe(error))}")
        return Decoded(pixels=_stack(images), labels=torch.tensor(labels, dtype=torch.long), problems=problems)


def _stack(images: Sequence[Tensor | np.ndarray]) -> Tensor:
    """A batch with its channels innermost in memory, as decoders have them."""
    if not images:
        return torch.empty(0)
    return torch.stack([torch.as_tensor(image).permute(1, 2, 0) for image in images]).permute(0, 3, 1, 2)


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


@contextmanager
def _many_workers() -> Iterator[None]:
    """Who asks for more workers than there are cores gets them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
        yield


class Reader:
    """Reads and decodes in workers, which stay from one pass to the next."""

    def __init__(self, rows: IndexedRows | StreamRows, decoder: Decoder, num_workers: int) -> None:
        self.rows, self.decoder, self.num_workers = rows, decoder, num_workers
        self.busy = False
        self._plan = _Plan()
        streamed = isinstance(rows, StreamRows)
        self._dataset = _Streamed(rows, decoder) if isinstance(rows, StreamRows) else _Indexed(rows, decoder)
        with _many_workers():
            self._loader: DataLoader[Decoded] = DataLoader(
                self._dataset,
                sampler=None if streamed else self._plan,
                batch_size=None,
                num_workers=num_workers,
                persistent_workers=num_workers > 0,
                generator=torch.Generator(),  # so that starting workers draws nothing from the global one
                pin_memory=torch.cuda.is_available(),
            )

    def serves(self, rows: IndexedRows | StreamRows, decoder: Decoder, num_workers: int) -> bool:
        """Whether it reads just this, and nobody is reading."""
        same = self.rows is rows and self.decoder == decoder and self.num_workers == num_workers
        return same and not self.busy

    def read_plan(self, plan: Iterable[np.ndarray], seed: int | None) -> Iterator[Decoded]:
        """These batches of rows with random access."""
        self.busy, self._plan.items = True, [(indices, seed) for indices in plan]
        return self._pass()

    def read_stream(self, seed: int | None, portion: Portion) -> Iterator[Decoded]:
        """A stream; micro-batches that are done already are passed over without decoding."""
        assert isinstance(self._dataset, _Streamed)
        self.busy = True
        self._dataset.tell(seed, portion)
        return self._in_turns(portion.start * portion.micro_batches)

    def _in_turns(self, done: int) -> Iterator[Decoded]:
        """Batches of workers that take turns to the very end, so that their order does not depend on time."""
        number, ended, workers = 0, set[int](), max(1, self.num_workers)
        for turn, batch in enumerate(self._pass()):
            if batch.over:
                ended.add(turn % workers)
                if len(ended) == workers:
                    return
                continue
            if batch.failure or number >= done:
                yield batch
            number += 1

    def _pass(self) -> Iterator[Decoded]:
        try:
            with _many_workers():
                decoded = iter(self._loader)
            yield from decoded
        finally:
            self.busy = False


class _Plan(Sampler[tuple[np.ndarray, "int | None"]]):
    """What is read in the next pass."""

    items: Sequence[tuple[np.ndarray, int | None]] = ()

    def __iter__(self) -> Iterator[tuple[np.ndarray, int | None]]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)


class _Indexed(Dataset[Decoded]):
    def __init__(self, rows: IndexedRows, decoder: Decoder) -> None:
        self.rows, self.decoder = rows, decoder

    def __getitem__(self, item: tuple[np.ndarray, int | None]) -> Decoded:
        indices, seed = item
        return self.decoder((self.rows[int(index)] for index in indices), seed)


class _Streamed(IterableDataset[Decoded]):
    def __init__(self, rows: StreamRows, decoder: Decoder) -> None:
        self.rows, self.decoder = rows, decoder
        self._told = torch.zeros(7, dtype=torch.long).share_memory_()
        """The present pass, for workers that began before it."""

    def tell(self, seed: int | None, portion: Portion) -> None:
        """What the next pass is of."""
        size, parts = portion.micro_size, (portion.process, portion.num_processes)
        told = [seed is not None, (seed or 0) >> 32, (seed or 0) % 2**32, size, *parts]
        self._told.copy_(torch.tensor([*told, portion.start * portion.micro_batches]))

    def __iter__(self) -> Iterator[Decoded]:
        seeded, high, low, size, which, parts, done = self._told.tolist()
        seed = high << 32 | low if seeded else None
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        if worker:
            fsspec.asyn.reset_lock()  # held by who knows whom when this process began
        passed = len(range(number, done, workers))  # at least: those of workers that had fewer were taken by others
        empty = Decoded(pixels=torch.empty(0), labels=torch.empty(0), problems=[])
        try:
            rows = self.rows.rows(seed, (which, parts), (number, workers))
            for place, chunk in enumerate(even_chunks(rows, size)):
                yield empty if place < passed else self.decoder(chunk, seed)
        except EagleEyeError as error:  # in a worker it would become a traceback
            yield replace(empty, failure=str(error))
        while True:
            yield replace(empty, over=True)


def even_chunks(rows: Iterator[Row], size: int) -> Iterator[list[Row]]:
    """Lists of `size` rows; a last single row joins the list before, since BatchNorm can't train on one image."""
    chunk = list(islice(rows, size))
    while chunk:
        after = list(islice(rows, size))
        if len(after) == 1 and size > 1:
            chunk, after = chunk + after, []
        yield chunk
        chunk = after
