"""MACs and parameters as exact integer functions of widths."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from eagleeye_hf.channels.graph import ChannelGraph, Terms


@runtime_checkable
class HasWidths(Protocol):
    """What of a strategy counts here."""

    @property
    def widths(self) -> tuple[int, ...]: ...
    @property
    def removed_blocks(self) -> tuple[str, ...]: ...
    @property
    def image_size(self) -> int | None: ...


class Cost(NamedTuple):
    """Multiply-accumulates of one image, and parameters; integers, or arrays of them for many candidates."""

    macs: int | np.ndarray
    params: int | np.ndarray


def count_cost(graph: ChannelGraph, strategy: HasWidths | Sequence[int] | np.ndarray) -> Cost:
    """Count what the network costs under a strategy, without building it.

    MACs are those of convolutions and matrix products (biases and BatchNorm not counted), for one image;
    PyTorch's `FlopCounterMode` counts exactly twice as many. Parameters are all of the model's.

    Args:
        strategy: or its widths, shape `(num_groups,)`; or many at once, widths of shape `(num_candidates, num_groups)`
            or rows as `strategy_rows` gives them.
    Returns:
        Two integers, or two integer arrays of shape `(num_candidates,)`.
    """
    rows = strategy_rows(graph, [strategy])[0] if isinstance(strategy, HasWidths) else np.asarray(strategy, np.int64)
    widths, removed, image_sizes = split_rows(graph, rows)
    units = widths // graph.steps
    # float64 matrix products are exact here (below 2**53) and far faster than NumPy's integer ones
    forms = (units.astype(np.float64) @ graph.cost.coefficients + graph.cost.constants).astype(np.int64).T
    macs = _sum_terms(graph.cost.macs, forms, removed, _factors(graph, image_sizes))
    params = _sum_terms(graph.cost.params, forms, removed, None)
    if rows.ndim == 1:
        return Cost(int(macs[0]), int(params[0]))
    return Cost(macs, params)


def strategy_rows(graph: ChannelGraph, strategies: Sequence[HasWidths]) -> np.ndarray:
    """Strategies as rows of integers: widths, for each of `graph.blocks` whether it is removed, and the image size.

    Returns:
        Shape `(num_strategies, num_groups + num_blocks + 1)`.
    """
    names, size = [block.name for block in graph.blocks], graph.image_size
    rows = [
        [*one.widths, *(name in one.removed_blocks for name in names), one.image_size or size] for one in strategies
    ]
    return np.array(rows, dtype=np.int64).reshape(len(rows), len(graph.groups) + len(names) + 1)


def split_rows(graph: ChannelGraph, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """The three parts of such rows; the last two None where the rows are widths alone."""
    rows, num = np.atleast_2d(rows), len(graph.groups)
    if rows.shape[1] == num:
        return rows, None, None
    return rows[:, :num], rows[:, num:-1] == 1, rows[:, -1]


def _factors(graph: ChannelGraph, image_sizes: np.ndarray | None) -> np.ndarray | None:
    """The factor of each term of the MACs, shape `(num_terms, num_candidates)`; None for those of the trace."""
    if image_sizes is None or np.all(image_sizes == graph.image_size):
        return None
    known = {graph.image_size: tuple(factor for factor, _, _ in graph.cost.macs), **dict(graph.cost.macs_at)}
    return np.array([known[int(size)] for size in image_sizes], dtype=np.int64).T


def _sum_terms(terms: Terms, forms: np.ndarray, removed: np.ndarray | None, factors: np.ndarray | None) -> np.ndarray:
    """
    Args:
        factors: of the terms, shape `(num_terms, num_candidates)`, where they are not the terms' own.
    """
    total = np.zeros(forms.shape[1], dtype=np.int64)
    for own, places, blocks, *indices in _by_length(terms):
        products = own * np.ones_like(total) if factors is None else factors[places]
        for index in indices:
            products *= forms[index]
        if removed is not None and removed.shape[1]:
            products *= ~(removed[:, blocks] & (blocks >= 0)).T
        total += products.sum(0)
    return total


@functools.lru_cache(maxsize=16)
def _by_length(terms: Terms) -> list[list[np.ndarray]]:
    """Of all terms with as many forms: factors, shape `(num, 1)`, places, blocks, and first, second... forms."""
    found = []
    for length in sorted({len(indices) for _, indices, _ in terms}):
        same = [(place, *term) for place, term in enumerate(terms) if len(term[1]) == length]
        columns = [np.array([indices[side] for _, _, indices, _ in same]) for side in range(length)]
        factors = np.array([[factor] for _, factor, _, _ in same], dtype=np.int64)
        found.append(
            [factors, np.array([place for place, *_ in same]), np.array([term[-1] for term in same]), *columns]
        )
    return found
