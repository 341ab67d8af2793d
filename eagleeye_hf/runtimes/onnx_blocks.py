"""Blocks left out of an exported graph, found by what PyTorch's exporter notes of each node. Needs onnx."""

from __future__ import annotations

import ast
from collections.abc import Collection
from typing import Any

SCOPES = "pkg.torch.onnx.name_scopes"
"""The modules that a node is of, from the outermost to its own."""


def leave_out(graph: Any, removed_blocks: Collection[str]) -> None:
    """Take blocks out of an `onnx.GraphProto` without its initialisers: what read a block's output reads its input.

    Raises:
        ValueError: a block's nodes are not known, or not those between one value and another.
    """
    for block in removed_blocks:
        if not any(_bypass(graph, _find_nodes(graph, block, first)) for first in (False, True)):
            raise ValueError(f"{block} can't be told from the rest")


def _find_nodes(graph: Any, block: str, first: bool) -> dict[str, Any]:
    """A block's nodes by their first output. Those whose place is not noted are its own where they lie between others.

    Args:
        first: or where they come first, and only the block reads what they make.
    """
    inside = {node.output[0]: node for node in graph.node if block in _scopes(node)}
    unknown, before = [node for node in graph.node if not _scopes(node)], -1
    while inside and len(inside) != before:
        before = len(inside)
        for node in unknown:
            readers = {reader.output[0] for reader in graph.node if set(reader.input) & set(node.output)}
            if readers and readers <= inside.keys() and (first or _outputs(inside) & set(node.input)):
                inside[node.output[0]] = node
    return inside


def _bypass(graph: Any, inside: dict[str, Any]) -> bool:
    """Take these nodes out, if they read one value and give one."""
    made, outside = _outputs(inside), [node for node in graph.node if node.output[0] not in inside]
    given = {i.name for i in graph.input} | {name for node in outside if node.input for name in node.output}
    read = {name for node in inside.values() for name in node.input if name in given}
    used = {name for node in outside for name in node.input if name in made}
    if len(read) != 1 or len(used) != 1:
        return False
    (before,), (after,) = read, used
    for node in outside:
        for place, name in enumerate(node.input):
            if name == after:
                node.input[place] = before
    for node in inside.values():
        graph.node.remove(node)
    return True


def _outputs(nodes: dict[str, Any]) -> set[str]:
    return {output for node in nodes.values() for output in node.output}


def _scopes(node: Any) -> Collection[str]:
    noted = next((entry.value for entry in node.metadata_props if entry.key == SCOPES), "[]")
    return set(ast.literal_eval(noted))
