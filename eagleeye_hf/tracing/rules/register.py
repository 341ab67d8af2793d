"""What a rule is given, the register of rules, and what many of them do."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from eagleeye_hf.tracing.ids import Dim, Dims, Product, Store


class Tracer(Protocol):
    """What a rule may use."""

    store: Store

    def dims(self, tensor: Tensor, beside: Mapping[int, Dim] = ...) -> Dims:
        """Of a tensor; a parameter met for the first time takes the ids of the data that it will be tied to.

        Args:
            beside: that data's dim, per dimension of the tensor.
        """

    def set_dims(self, tensor: Tensor, dims: Sequence[Dim]) -> None: ...
    def is_weight(self, tensor: Tensor) -> bool: ...
    def found_size(self, size: int, ids: Dim, role: str = "") -> None: ...
    def merged(self, size: int, ids: np.ndarray) -> None: ...
    def count(self, factor: int, dims: Sequence[tuple[int, Dim]]) -> None: ...
    def prefers_whole_groups(self, groups: int, num_in: int, num_out: int) -> bool: ...
    def keeps_outer(self, outer: int) -> bool: ...


Rule = Callable[[Tracer, dict[str, Any], Any], None]
RULES: dict[str, Rule] = {}
NO_RULE = "the operator {} has no rule"


def rule(*names: str) -> Callable[[Rule], Rule]:
    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


@functools.cache
def operator_name(func: Any) -> str:
    """Of an ATen overload, without its namespace; asking PyTorch takes longer than most rules."""
    return func._schema.name.removeprefix("aten::")


@functools.cache
def argument_names(func: Any) -> tuple[str, ...]:
    return tuple(argument.name for argument in func._schema.arguments)


@functools.cache
def factor_names(func: Any) -> frozenset[str]:
    """Of the arguments that are numbers to compute with, or tensors that may be given as such."""
    return frozenset(a.name for a in func._schema.arguments if str(a.type) in ("number", "Tensor"))


def join(tracer: Tracer, dims: Sequence[Dim], reason: str) -> Dim:
    """Tie dims of one size; one that is fixed fixes the others."""
    tracked = [dim for dim in dims if dim is not None]
    if not tracked:
        return None
    first = tracked[0]
    if len(dims) == 1:
        return first
    if len(tracked) < len(dims):
        for dim in tracked:
            tracer.store.pin(dim, reason)
    if all(isinstance(dim, np.ndarray) for dim in tracked):
        joined = first
        for dim in tracked[1:]:
            joined = tracer.store.join(joined, dim)  # type: ignore[arg-type]
        return joined
    sizes = {tuple(size for size, _ in dim.factors) if isinstance(dim, Product) else None for dim in tracked}
    if len(sizes) > 1:
        for dim in tracked:
            tracer.store.pin(dim, "dimensions flattened in different ways meet")
        return None
    assert isinstance(first, Product)
    columns = zip(*(dim.factors for dim in tracked if isinstance(dim, Product)), strict=True)
    return Product(tuple((column[0][0], join(tracer, [ids for _, ids in column], reason)) for column in columns))  # type: ignore[misc]


def pin_all(tracer: Tracer, dims: Sequence[Dim], reason: str) -> None:
    for dim in dims:
        if dim is not None:
            tracer.store.pin(dim, reason)


def tie_columns(tracer: Tracer, ids: np.ndarray) -> np.ndarray:
    """Tie the columns of a matrix of ids with one another; return the first."""
    return tracer.store.tie_rows(ids.T)
