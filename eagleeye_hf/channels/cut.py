"""The bare mechanism of surgery: a copy of a model with fewer channels, tensors and Python sizes alike."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from eagleeye_hf.channels.graph import ChannelGraph, ChannelGroup, SizeAttribute
from eagleeye_hf.channels.removal import is_removed
from eagleeye_hf.channels.resizing import resize_modules
from eagleeye_hf.errors import EagleEyeError

CONTAINERS = frozenset({dict, OrderedDict, set})
"""Empty ones need no copying item by item: a module's dozen of hooks take half of the time of `copy.deepcopy`."""


def named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter and buffer once, those that `state_dict` leaves out included."""
    yield from model.named_parameters()
    yield from model.named_buffers()


def kept_places(
    graph: ChannelGraph, keep: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]
) -> dict[tuple[str, int], np.ndarray]:
    """The indices that stay, per (tensor, dimension) that loses some."""
    starts: dict[tuple[str, int], int] = {}
    """Where the places of a tensor's dimension lie in one array of all."""
    total, removed = 0, []
    for group in graph.groups:
        if group.name not in keep:
            continue
        offsets: list[int] = []
        for member in group.members:
            key = member.tensor, member.dim
            if key not in starts:
                starts[key] = total
                total += shapes[member.tensor][member.dim]
            offsets += [starts[key]] * member.index.shape[1]
        index = np.concatenate([member.index.T for member in group.members])
        removed.append((index[:, _removed(group, keep)] + np.array(offsets)[:, None]).ravel())
    stays = np.ones(total, dtype=bool)
    stays[np.concatenate([*removed, np.empty(0, dtype=np.int64)])] = False
    kept = np.flatnonzero(stays)
    edges = np.searchsorted(kept, [*starts.values(), total]).tolist()
    return {
        key: kept[first:last] - start
        for (key, start), first, last in zip(starts.items(), edges[:-1], edges[1:], strict=True)
    }


def _removed(group: ChannelGroup, keep: Mapping[str, np.ndarray]) -> np.ndarray:
    """Per channel, whether `keep` leaves it out."""
    removed = np.ones(group.channels, dtype=bool)
    removed[keep[group.name]] = False
    return removed


def thin_copy(
    model: nn.Module, graph: ChannelGraph, keep: Mapping[str, np.ndarray], removed_blocks: Collection[str] = ()
) -> nn.Module:
    """A new model without the channels that `keep` leaves out and without some blocks; the input is untouched."""
    tensors = dict(named_tensors(model))
    cuts: dict[str, list[tuple[int, np.ndarray]]] = {}
    for (name, dim), kept in kept_places(graph, keep, {name: tuple(t.shape) for name, t in tensors.items()}).items():
        if not is_removed(name, removed_blocks):
            cuts.setdefault(name, []).append((dim, kept))
    pairs = ((tensors[name], cut_tensor(tensors[name], cut)) for name, cut in cuts.items())
    thinned = _copy_with(model, pairs, removed_blocks)
    resize_modules(thinned, attribute_sizes(graph, keep, removed_blocks))
    return thinned


def attribute_sizes(
    graph: ChannelGraph, keep: Mapping[str, np.ndarray], removed_blocks: Collection[str] = ()
) -> dict[tuple[str, tuple[str | int, ...]], int]:
    """What the sizes that modules keep for themselves become."""
    return {
        (attribute.module, attribute.path): kept_size(attribute, graph, keep)
        for attribute in graph.attributes
        if not is_removed(attribute.module, removed_blocks)
    }


def meta_copy(model: nn.Module) -> nn.Module:
    """A copy whose tensors have shapes but no values."""
    return _copy_with(model, ((t, torch.empty(t.shape, dtype=t.dtype, device="meta")) for _, t in named_tensors(model)))


def clear_caches(model: nn.Module) -> None:
    """Forget what a forward pass left behind (LeViT keeps its attention biases): it has the old sizes."""
    for module in model.modules():
        for name, value in vars(module).items():
            if _is_cache(name, value):
                value.clear()


def _is_cache(name: str, value: Any) -> bool:
    return type(value) is dict and not name.startswith("_") and all(isinstance(v, Tensor) for v in value.values())


def _copy_with(
    model: nn.Module, replacements: Iterable[tuple[Tensor, Tensor]], removed_blocks: Collection[str] = ()
) -> nn.Module:
    """A deep copy that has other tensors in place of some, and nothing that a forward pass left behind."""
    memo: dict[int, Any] = {id(model.get_submodule(name)): nn.Identity() for name in removed_blocks}
    for old, new in replacements:
        memo[id(old)] = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
    for module in model.modules():
        for name, value in vars(module).items():
            if type(value) in CONTAINERS and (not value or _is_cache(name, value)):
                memo[id(value)] = type(value)()
    try:
        return copy.deepcopy(model, memo)
    except RuntimeError as error:
        raise EagleEyeError(
            f"`model` can't be copied: {_find_computed(model)} is computed from other tensors. Instead of "
            " the old weight_norm and spectral_norm use those of `torch.nn.utils.parametrizations`, make the "
            "masks of `torch.nn.utils.prune` permanent with `prune.remove`, and delete what hooks have kept"
        ) from error


def _find_computed(model: nn.Module) -> str:
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            if isinstance(value, Tensor) and value.grad_fn is not None:
                return f"{name}.{attribute}" if name else attribute
    return "a tensor in it"


def cut_tensor(full: Tensor, cuts: list[tuple[int, np.ndarray]]) -> Tensor:
    thin = full.detach()
    for dim, kept in cuts:
        thin = thin.index_select(dim, torch.from_numpy(kept).to(full.device))
    return thin


def kept_size(attribute: SizeAttribute, graph: ChannelGraph, keep: Mapping[str, np.ndarray]) -> int:
    mask = np.ones(attribute.length, dtype=bool)
    for number, pairs in attribute.parts:
        group = graph.groups[number]
        if group.name in keep:
            mask[pairs[_removed(group, keep)[pairs[:, 0]], 1]] = False
    return int(mask.sum())
