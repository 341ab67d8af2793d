"""The bare mechanism of surgery: a copy of a model with fewer channels, tensors and Python sizes alike."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from eagleeye_hf.channels.graph import ChannelGraph, ChannelGroup, SizeAttribute
from eagleeye_hf.channels.resizing import resize_modules

ATOMS = frozenset({bool, int, float, str, type(None)})


def named_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """What `model.named_modules()` gives, whose nested generators take longer than all that is done with it."""
    found: dict[int, tuple[str, nn.Module]] = {}
    _visit(model, "", found)
    return list(found.values())


def _visit(module: nn.Module, name: str, found: dict[int, tuple[str, nn.Module]]) -> None:
    if id(module) not in found:
        found[id(module)] = name, module
        for key, child in module._modules.items():
            if child is not None:
                _visit(child, f"{name}.{key}" if name else key, found)


def named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter and buffer once, those that `state_dict` leaves out included."""
    modules, seen = named_modules(model), set()
    for kind in ("_parameters", "_buffers"):
        for prefix, module in modules:
            for name, tensor in getattr(module, kind).items():
                if tensor is not None and id(tensor) not in seen:
                    seen.add(id(tensor))
                    yield f"{prefix}.{name}" if prefix else name, tensor


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


def thin_copy(model: nn.Module, graph: ChannelGraph, keep: Mapping[str, np.ndarray], meta: bool = False) -> nn.Module:
    """A new model without the channels that `keep` leaves out; the input is untouched.

    Args:
        meta: the copy's tensors have shapes but no values.
    """
    tensors = dict(named_tensors(model))
    places = kept_places(graph, keep, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
    by_tensor: dict[str, list[tuple[int, np.ndarray]]] = {name: [] for name in tensors} if meta else {}
    for (name, dim), kept in places.items():
        by_tensor.setdefault(name, []).append((dim, kept))
    memo: dict[int, Any] = {}
    for name, cuts in by_tensor.items():
        full = tensors[name]
        thin = _meta_cut(full, cuts) if meta else cut_tensor(full, cuts)
        memo[id(full)] = nn.Parameter(thin, full.requires_grad) if isinstance(full, nn.Parameter) else thin
    thinned = _copy_without_caches(model, memo)
    resize_modules(thinned, {(a.module, a.path): kept_size(a, graph, keep) for a in graph.attributes})
    return thinned


def meta_copy(model: nn.Module) -> nn.Module:
    """A copy whose tensors have shapes but no values."""
    memo: dict[int, Any] = {}
    for _, full in named_tensors(model):
        empty = _meta_cut(full, [])
        memo[id(full)] = nn.Parameter(empty, full.requires_grad) if isinstance(full, nn.Parameter) else empty
    return _copy_without_caches(model, memo)


def to_eval(model: nn.Module) -> nn.Module:
    """`model.eval()`, where it is not in that mode already."""
    return model.eval() if any(module.training for _, module in named_modules(model)) else model


def clear_caches(model: nn.Module) -> None:
    """Forget what a forward pass left behind (LeViT keeps its attention biases): it has the old sizes."""
    for _, module in named_modules(model):
        _clear_own_caches(module)


def _clear_own_caches(module: nn.Module) -> None:
    for name, value in vars(module).items():
        if _is_cache(name, value):
            value.clear()


def _is_cache(name: str, value: Any) -> bool:
    return type(value) is dict and not name.startswith("_") and all(isinstance(v, Tensor) for v in value.values())


def _copy_without_caches(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """`copy.deepcopy`, several times faster: most of what it copies is a module's dozen empty dictionaries of hooks."""
    modules = [module for _, module in named_modules(model)]
    plain_kinds = {kind for kind in set(map(type, modules)) if _copies_plainly(kind)}
    plain = [module for module in modules if type(module) in plain_kinds]
    for module in plain:
        memo[id(module)] = object.__new__(type(module))
    for module in plain:
        state = vars(memo[id(module)])
        for name, value in vars(module).items():
            kind = type(value)
            if kind in ATOMS:
                state[name] = value
            elif kind in (dict, OrderedDict, set) and (not value or _is_cache(name, value)):
                state[name] = kind()
            elif name != "_compiled_call_impl":  # belongs to the old module; `nn.Module` leaves it out, too
                state[name] = _copy_value(value, memo)
    new = copy.deepcopy(model, memo)
    for module in modules:
        if type(module) not in plain_kinds and id(module) in memo:
            _clear_own_caches(memo[id(module)])
    return new


def _copy_value(value: Any, memo: dict[int, Any]) -> Any:
    kind = type(value)
    if kind is tuple and all(type(item) in ATOMS for item in value):
        return value
    if kind is dict and all(item is None or id(item) in memo for item in value.values()):
        return {key: None if item is None else memo[id(item)] for key, item in value.items()}
    return copy.deepcopy(value, memo)


def _copies_plainly(kind: type) -> bool:
    """Whether a class leaves it to `deepcopy` how its instances are copied."""
    return not hasattr(kind, "__deepcopy__") and all(
        getattr(kind, name, None) is getattr(nn.Module, name, None)
        for name in ("__getstate__", "__reduce__", "__reduce_ex__")
    )


def cut_tensor(full: Tensor, cuts: list[tuple[int, np.ndarray]]) -> Tensor:
    thin = full.detach()
    for dim, kept in cuts:
        thin = thin.index_select(dim, torch.from_numpy(kept).to(full.device))
    return thin


def _meta_cut(full: Tensor, cuts: list[tuple[int, np.ndarray]]) -> Tensor:
    shape = list(full.shape)
    for dim, kept in cuts:
        shape[dim] = len(kept)
    return torch.empty(shape, dtype=full.dtype, device="meta")


def kept_size(attribute: SizeAttribute, graph: ChannelGraph, keep: Mapping[str, np.ndarray]) -> int:
    mask = np.ones(attribute.length, dtype=bool)
    for number, pairs in attribute.parts:
        group = graph.groups[number]
        if group.name in keep:
            mask[pairs[_removed(group, keep)[pairs[:, 0]], 1]] = False
    return int(mask.sum())
