"""Channel ids: fresh numbers for every index of every parameter dimension, and what ties or pins them.

A *dim* describes one dimension of a tensor: `None` (its size is fixed, nothing in it can be removed), an integer
array with one id per index, or a `Product` where several of those are flattened together.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class Product:
    """A dimension that flattens several: (size, ids or None) per factor, outermost first."""

    factors: tuple[tuple[int, np.ndarray | None], ...]


Dim = np.ndarray | Product | None
Dims = tuple[Dim, ...]

FREE = -1
"""In a check, the id of an index that fits anything: a constant, such as zero padding."""


class MismatchError(Exception):
    """Two things that must lie at the same channels do not."""


@dataclass
class Label:
    """Where ids lie along one dimension of one parameter or buffer."""

    tensor: str
    dim: int
    start: int
    """Its number: the first of its ids, unless it takes those of the data."""
    ids: np.ndarray
    """`start, start + 1, ...`, or those it takes."""
    positions: np.ndarray
    """Shape `(num_ids, k)`."""


@functools.cache
def column(size: int) -> np.ndarray:
    """The places 0, 1, ... of a whole dimension, as a label has them."""
    return np.arange(size)[:, None]


@dataclass
class Recorder:
    """Collects ties and pins while the full model runs; solved once at the end."""

    num_ids: int = 0
    labels: dict[int, Label] = field(default_factory=dict)
    ties: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    pins: list[tuple[np.ndarray, str]] = field(default_factory=list)
    producers: list[np.ndarray] = field(default_factory=list)
    factored: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    free_starts: set[int] = field(default_factory=set)

    def fresh(self, num: int) -> np.ndarray:
        ids = np.arange(self.num_ids, self.num_ids + num)
        self.num_ids += num
        return ids

    def free(self, num: int) -> np.ndarray:
        """Ids of indices that are all alike, so that any of them can go."""
        self.free_starts.add(self.num_ids)
        return self.fresh(num)

    def is_free(self, ids: np.ndarray) -> bool:
        return int(ids[0]) in self.free_starts

    def parameter_dims(self, name: str, tensor: Tensor, beside: Mapping[int, Dim]) -> Dims:
        dims: list[Dim] = []
        for dim, size in enumerate(tensor.shape):
            if size > 1:
                start, data = self.num_ids, beside.get(dim)
                if isinstance(data, np.ndarray) and len(data) == size:
                    self.fresh(1)
                    ids = data
                else:
                    ids = self.fresh(size)
                self.labels[start] = Label(name, dim, start, ids, column(size))
                dims.append(ids)
            else:
                dims.append(None)
        return tuple(dims)

    def tie(self, a: np.ndarray, b: np.ndarray) -> None:
        if a is not b:
            self.ties.append((a, b))

    def join(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        self.tie(a, b)
        return a

    def pin(self, dim: Dim, reason: str) -> None:
        for ids in arrays(dim):
            self.pins.append((ids, reason))

    def split(self, ids: np.ndarray, outer: int) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Cut one dimension into (outer, inner): equal pieces stay equal, so only the inner part has ids."""
        label = self.labels.get(int(ids[0]))
        is_kernel_bank = label is not None and label.dim > 0 and np.array_equal(ids, label.ids)
        key = (int(ids[0]), outer)
        if key in self.factored:
            return self.factored[key]
        if is_kernel_bank:
            assert label is not None
            inner = len(ids) // outer
            places = label.positions.reshape(outer, inner, -1)
            pair = self.fresh(outer), self.fresh(inner)
            for part, positions in zip(
                pair, (places.reshape(outer, -1), places.swapaxes(0, 1).reshape(inner, -1)), strict=True
            ):
                start = int(part[0])
                self.labels[start] = Label(label.tensor, label.dim, start, part, positions)
            del self.labels[label.start]
            self.factored[key] = pair
            return pair
        return None, self.tie_rows(ids.reshape(outer, -1))

    def tie_rows(self, ids: np.ndarray) -> np.ndarray:
        """Tie the rows of a matrix of ids with one another."""
        self.tie(np.broadcast_to(ids[0], (len(ids) - 1, ids.shape[1])).ravel(), ids[1:].ravel())
        return ids[0]

    def roots(self) -> np.ndarray:
        """The smallest id of each id's tied set; shape `(num_ids,)`."""
        parent = np.arange(self.num_ids)
        if not self.ties:
            return parent
        left, right = (np.concatenate([pair[side] for pair in self.ties]) for side in (0, 1))
        while True:
            a, b = parent[left], parent[right]
            differs = a != b
            if not differs.any():
                return parent
            left, right, a, b = left[differs], right[differs], a[differs], b[differs]
            np.minimum.at(parent, np.maximum(a, b), np.minimum(a, b))
            while not np.array_equal(jump := parent[parent], parent):
                parent = jump


@dataclass
class Checker:
    """Runs the rules again on a thinned model and raises `MismatchError` where tied channels do not coincide."""

    kept: dict[str, Dims]
    """Per tensor name, the root of every kept index."""
    pinned: np.ndarray
    """Per id, whether it must not be removed."""

    producers: list[np.ndarray] = field(default_factory=list)

    def free(self, num: int) -> np.ndarray:
        return np.full(num, FREE)

    def is_free(self, ids: np.ndarray) -> bool:
        return bool((ids == FREE).all())

    def parameter_dims(self, name: str, tensor: Tensor, beside: Mapping[int, Dim]) -> Dims:
        return self.kept[name]

    def tie(self, a: np.ndarray, b: np.ndarray) -> None:
        self.join(a, b)

    def join(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        if a is b or np.array_equal(a, b):
            return b  # very likely the array that comes next, too
        if a.shape != b.shape:
            raise MismatchError(f"{a.size} channels meet {b.size}")
        if not np.all((a == b) | (a == FREE) | (b == FREE)):
            raise MismatchError("channels meet others than in the full model")
        return np.where(a == FREE, b, a)

    def pin(self, dim: Dim, reason: str) -> None:
        for ids in arrays(dim):
            if not self.pinned[ids[ids != FREE]].all():
                raise MismatchError(reason)

    def split(self, ids: np.ndarray, outer: int) -> tuple[np.ndarray | None, np.ndarray | None]:
        return None, self.tie_rows(ids.reshape(outer, -1))

    def tie_rows(self, ids: np.ndarray) -> np.ndarray:
        row = ids[0]
        for other in ids[1:]:
            row = self.join(row, other)
        return row


Store = Recorder | Checker


def arrays(dim: Dim) -> Iterable[np.ndarray]:
    """The id arrays in a dim."""
    if isinstance(dim, Product):
        return [ids for _, ids in dim.factors if ids is not None]
    return [] if dim is None else [dim]


def factors_of(size: int, dim: Dim) -> list[tuple[int, np.ndarray | None]]:
    return list(dim.factors) if isinstance(dim, Product) else [(size, dim)]


def merge_factors(factors: Sequence[tuple[int, np.ndarray | None]]) -> Dim:
    """Flatten dimensions into one: ids repeat over the inner sizes and tile over the outer ones."""
    tracked = [i for i, (_, ids) in enumerate(factors) if ids is not None]
    if not tracked:
        return None
    if len(tracked) > 1:
        return Product(tuple(factors))
    where = tracked[0]
    ids = factors[where][1]
    assert ids is not None
    outer = int(np.prod([size for size, _ in factors[:where]], dtype=np.int64))
    inner = int(np.prod([size for size, _ in factors[where + 1 :]], dtype=np.int64))
    return np.tile(np.repeat(ids, inner), outer) if outer * inner > 1 else ids
