"""MACs and parameters as exact integer functions of widths."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from eagleeye_hf.channels.graph import ChannelGraph

Terms = tuple[tuple[int, tuple[int, ...]], ...]
"""Each a factor, and the forms it is multiplied with."""


@runtime_checkable
class HasWidths(Protocol):
    """What of a strategy counts here."""

    @property
    def widths(self) -> tuple[int, ...]: ...


class Cost(NamedTuple):
    """Multiply-accumulates of one image, and parameters; integers, or arrays of them for many candidates."""

    macs: int | np.ndarray
    params: int | np.ndarray


def count_cost(graph: ChannelGraph, strategy: HasWidths | Sequence[int] | np.ndarray) -> Cost:
    """Count what the network costs under a strategy, without building it.

    MACs are those of convolutions and matrix products (biases and BatchNorm not counted), for one image of
    `graph.input_size`; PyTorch's `FlopCounterMode` counts exactly twice as many. Parameters are all of the model's.

    Args:
        strategy: or its widths, shape `(num_groups,)`, or widths of shape `(num_candidates, num_groups)`, many at once.
    Returns:
        Two integers, or two integer arrays of shape `(num_candidates,)`.
    """
    array = np.asarray(strategy.widths if isinstance(strategy, HasWidths) else strategy, dtype=np.int64)
    units = np.atleast_2d(array) // graph.steps
    # float64 matrix products are exact here (below 2**53) and far faster than NumPy's integer ones
    forms = (units.astype(np.float64) @ graph.cost.coefficients + graph.cost.constants).astype(np.int64).T
    macs = _sum_terms(graph.cost.macs, forms)
    params = _sum_terms(graph.cost.params, forms)
    if array.ndim == 1:
        return Cost(int(macs[0]), int(params[0]))
    return Cost(macs, params)


def _sum_terms(terms: Terms, forms: np.ndarray) -> np.ndarray:
    total = np.zeros(forms.shape[1], dtype=np.int64)
    for factors, *indices in _by_length(terms):
        products = factors * np.ones_like(total)
        for index in indices:
            products *= forms[index]
        total += products.sum(0)
    return total


@functools.lru_cache(maxsize=16)
def _by_length(terms: Terms) -> list[list[np.ndarray]]:
    """Factors of shape `(num, 1)` and the indices of first, second... forms, of all terms with as many."""
    found = []
    for length in sorted({len(indices) for _, indices in terms}):
        same = [(factor, indices) for factor, indices in terms if len(indices) == length]
        columns = [np.array([indices[place] for _, indices in same]) for place in range(length)]
        found.append([np.array([[factor] for factor, _ in same], dtype=np.int64), *columns])
    return found
