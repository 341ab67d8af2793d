"""Integers of an exported graph that are numbers of channels, as the sizes of a split are. Needs onnx."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from onnx import numpy_helper

Use = tuple[int, int]
"""Number of a node, and of one of its inputs."""
Entry = tuple[int, tuple[int, int] | None]
"""A value in the full network and, where it is a number of channels, which of a list of them it is, times what."""


def find_uses(graph: Any, arrays: Mapping[str, np.ndarray]) -> dict[Use, np.ndarray]:
    """Where nodes of an `onnx.GraphProto` read integers, more than ones, and which."""
    return {
        (number, place): array
        for number, node in enumerate(graph.node)
        for place, name in enumerate(node.input)
        if (array := arrays.get(name)) is not None and array.dtype == np.int64 and array.ndim == 1 and (array > 1).any()
    }


def match_integers(
    graph: Any, uses: Mapping[Use, np.ndarray], thin: Sequence[Any], sizes: Sequence[Sequence[int]]
) -> dict[Use, list[Entry]]:
    """Those of the integers that change with widths.

    Args:
        uses: of the full network's graph, as `find_uses` gives them.
        thin: graphs of thin networks.
        sizes: numbers of channels of the full network and of each thin one.
    """
    kinds, found, integers = [node.op_type for node in graph.node], list[dict[Use, np.ndarray]](), {}
    for other in thin:
        if [node.op_type for node in other.node] != kinds:
            return {}
        arrays = {entry.name: entry for entry in other.initializer}
        entries = {use: arrays.get(_input(other.node[use[0]], use[1])) for use in uses}
        found.append({use: numpy_helper.to_array(entry) for use, entry in entries.items() if entry is not None})
    for use, whole in uses.items():
        values = [whole, *(one.get(use, whole) for one in found)]
        if any(other.shape != whole.shape for other in values):
            continue
        columns = [
            (int(column[0]), _match(column, np.array(sizes)) if (column != column[0]).any() else None)
            for column in np.stack(values, axis=1)
        ]
        if any(size is not None for _, size in columns):
            integers[use] = columns
    return integers


def carry_over(
    uses: Mapping[Use, np.ndarray], other_uses: Mapping[Use, np.ndarray], integers: Mapping[Use, list[Entry]]
) -> dict[Use, list[Entry]] | None:
    """Those of the same network's graph for other images; None where it does not have the same numbers of channels."""
    if list(uses) != list(other_uses):
        return None
    found = {}
    for use, entries in integers.items():
        pairs = list(zip(uses[use], entries, strict=False))
        if len(uses[use]) != len(entries) or any(size and value != old for value, (old, size) in pairs):
            return None
        found[use] = [(int(value), size) for value, (_, size) in pairs]
    return found


def _input(node: Any, place: int) -> str:
    return node.input[place] if place < len(node.input) else ""


def _match(column: np.ndarray, sizes: np.ndarray) -> tuple[int, int] | None:
    """Which size, times which integer, has these values in the full network and in the thin ones.

    Args:
        sizes: shape `(1 + thin, num_sizes)`.
    """
    for place in range(sizes.shape[1]):
        factor = int(column[0]) // max(int(sizes[0, place]), 1)
        if factor and np.array_equal(sizes[:, place] * factor, column):
            return place, factor
    return None
