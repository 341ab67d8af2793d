"""Blocks that are gone: their modules give what they are given."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager

from torch import nn


def is_removed(name: str, removed_blocks: Collection[str]) -> bool:
    """Whether a module, or the module of a tensor, is one of these or lies in one."""
    return bool(removed_blocks) and any(name == block or name.startswith(f"{block}.") for block in removed_blocks)


def block_of(blocks: Mapping[str, int], module: str) -> int:
    """The number of the block that a module is, or is in; -1 where there is none."""
    parts = module.split(".")
    return next((blocks[n] for i in range(len(parts)) if (n := ".".join(parts[: i + 1])) in blocks), -1)


def remove_blocks(
    model: nn.Module, removed_blocks: Collection[str], instead: Callable[[], nn.Module] = nn.Identity
) -> dict[str, nn.Module]:
    """Put `nn.Identity` in the place of these modules of a model, in place; return what was there."""
    before = {}
    for name in removed_blocks:
        before[name] = model.get_submodule(name)
        _put(model, name, instead())
    return before


def restore_blocks(model: nn.Module, before: dict[str, nn.Module]) -> None:
    for name, module in before.items():
        _put(model, name, module)


@contextmanager
def without_blocks(
    model: nn.Module, removed_blocks: Collection[str], instead: Callable[[], nn.Module] = nn.Identity
) -> Iterator[None]:
    """The model lacks these blocks while the context lasts."""
    before = remove_blocks(model, removed_blocks, instead)
    try:
        yield
    finally:
        restore_blocks(model, before)


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, key = name.rpartition(".")
    model.get_submodule(parent)._modules[key] = module
