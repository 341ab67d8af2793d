"""What a run costs, as sums of products of linear forms of the groups' unit counts."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from eagleeye_hf.channels.graph import CostModel, Terms
from eagleeye_hf.tracing.groups import Grouping
from eagleeye_hf.tracing.ids import Dim, factors_of

Form = tuple[tuple[int, int], ...]
"""((-1, constant), (group, channels per unit), ...)"""
Cost = tuple[int, list[tuple[int, Dim]], str]
"""A constant factor, the size and dim of each dimension to multiply, and the name of the module that it is of."""


def cost_model(
    grouping: Grouping, macs: Iterable[Cost], params: Iterable[Cost], block_of: Callable[[str], int]
) -> CostModel:
    """
    Args:
        block_of: the number of the block that a module lies in, or -1.
    """
    counter = _UnitCounter(grouping, block_of)
    mac_terms, param_terms = counter.terms(macs), counter.terms(params)
    constants = np.zeros(len(counter.numbers), dtype=np.int64)
    coefficients = np.zeros((len(grouping.groups), len(counter.numbers)), dtype=np.int64)
    for form, i in counter.numbers.items():
        constants[i] = form[0][1]
        for group, count in form[1:]:
            coefficients[group, i] = count
    return CostModel(constants=constants, coefficients=coefficients, macs=mac_terms, params=param_terms)


class _UnitCounter:
    """Counts how many ids of each group there are, and numbers the distinct forms."""

    def __init__(self, grouping: Grouping, block_of: Callable[[str], int]) -> None:
        self.grouping, self.block_of = grouping, block_of
        self.numbers: dict[Form, int] = {}
        self._varies = np.array([group.prunable for group in grouping.groups] + [False])  # the last: no group, -1
        self._known: dict[bytes, Form] = {}

    def terms(self, costs: Iterable[Cost]) -> Terms:
        """Those over the same forms added up, block by block."""
        total: dict[tuple[tuple[int, ...], int], int] = {}
        for factor, dims, module in costs:
            numbers = []
            for form in [self._form(size, ids) for length, dim in dims for size, ids in factors_of(length, dim)]:
                if len(form) == 1:
                    factor *= form[0][1]
                else:
                    numbers.append(self.numbers.setdefault(form, len(self.numbers)))
            key = tuple(sorted(numbers)), self.block_of(module)
            total[key] = total.get(key, 0) + factor
        return tuple((factor, numbers, block) for (numbers, block), factor in total.items())

    def _form(self, size: int, ids: np.ndarray | None) -> Form:
        if ids is None:
            return ((-1, size),)
        roots = self.grouping.roots[ids]
        key = roots.tobytes()
        if key not in self._known:
            self._known[key] = self._count(roots)
        return self._known[key]

    def _count(self, roots: np.ndarray) -> Form:
        groups = self.grouping.groups
        group_at = self.grouping.group_of[roots]
        counts = np.bincount(np.where(self._varies[group_at], group_at, len(groups)), minlength=len(groups) + 1)
        form = [(-1, int(counts[-1]))]
        for number in np.flatnonzero(counts[:-1]).tolist():
            num_units = len(groups[number].units)
            assert counts[number] % num_units == 0, "the units of a group lie equally often along a dimension"
            form.append((number, int(counts[number]) // num_units))
        return tuple(form)
