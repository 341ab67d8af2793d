"""timm model -> ChannelGraph, by shadow execution.

A copy of the model runs once on the `meta` device, where nothing is computed, while a dispatch mode sees every ATen
call and lets `rules` follow the channels. Then a copy thinned at random runs through the same rules, which must find
every tie of the full model again: groups for which they do not are pinned, so that a graph never breaks its model.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from eagleeye_hf.channels.graph import ChannelGraph
from eagleeye_hf.channels.rules import apply_rule
from eagleeye_hf.channels.shadow import Checker, Dim, Dims, MismatchError, Recorder, Store
from eagleeye_hf.channels.sizes import SizeFinder
from eagleeye_hf.channels.solve import Solution, solve
from eagleeye_hf.channels.thin import meta_copy, named_tensors, thin_copy
from eagleeye_hf.errors import EagleEyeError

CONCATENATE = torch.ops.aten.cat.default
BATCH_NORM = torch.ops.aten.native_batch_norm.default
VIEWS_OF_ATTENTION = ((False, False), (True, False), (True, True), (False, True))
"""(remove whole heads instead of channels inside them, tie what heads give to the inputs and sizes of their module).
Which of them reaches most depends on how a model writes its attention, so all are tried where there are heads."""

OUTPUT = "carries the model's output"


def trace_model(model: nn.Module, input_size: Sequence[int] | None = None) -> ChannelGraph:
    """Find the channel groups of a network, and what they cost.

    Args:
        model: any module whose forward takes one image batch; it is not changed, and nothing is computed.
        input_size: `(channels, height, width)` of one image; by default the model's own (`pretrained_cfg`), else
            `(3, 224, 224)`. MACs are counted at this size.
    Returns:
        The groups in the order of execution. What can't be removed exactly is pinned, with a reason.
    Raises:
        EagleEyeError: `input_size` is no image size, or the forward pass fails on it.
    """
    size = resolve_input_size(model, input_size)
    best: ChannelGraph | None = None
    for view in VIEWS_OF_ATTENTION:
        full = Shadow(meta_copy(model).eval(), Recorder(), *view)
        try:
            full.run(size)
        except Exception as error:  # the model's own code, any error is possible
            raise EagleEyeError(
                f"`model` ({type(model).__name__}) can't be traced at `input_size={size}`: "
                f"{type(error).__name__}: {error}"
            ) from error
        solution = solve(full, size)
        if best is None or _reach(solution.graph) > _reach(best):  # confirming only takes away
            graph = _confirm(model, full, solution)
            best = graph if best is None or _reach(graph) > _reach(best) else best
        if not full.has_heads:
            break
    assert best is not None
    return best


def _reach(graph: ChannelGraph) -> int:
    """How many tensors can shrink."""
    return len({member.tensor for group in graph.prunable for member in group.members})


def resolve_input_size(model: nn.Module, input_size: Sequence[int] | None) -> tuple[int, int, int]:
    """`input_size`, or the model's own."""
    config = getattr(model, "pretrained_cfg", None) or {}
    size = tuple(input_size or config.get("input_size") or (3, 224, 224))
    if len(size) != 3 or not all(isinstance(n, int) and n > 0 for n in size):
        raise EagleEyeError(f"`input_size` is (channels, height, width), three positive integers; got {input_size}")
    return size


@dataclass
class Shadow:
    """One run of a model under the rules."""

    model: nn.Module
    store: Store
    whole_heads: bool = False
    tie_merged: bool = False
    has_heads: bool = False
    sizes: SizeFinder = field(init=False)
    costs: list[tuple[int, list[tuple[int, Dim]]]] = field(default_factory=list)
    log: list[tuple[Any, ...]] = field(default_factory=list)
    choices: list[bool] = field(default_factory=list)
    following: Iterator[bool] | None = None
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    finished: bool = False
    """Whether the forward pass is over; what runs afterwards costs nothing and is not compared."""

    def __post_init__(self) -> None:
        self.sizes = SizeFinder(self.model, self.dims)
        self._names = {id(tensor): name for name, tensor in named_tensors(self.model)}
        self._records: dict[int, tuple[Tensor, Dims, bool]] = {}

    def run(self, size: tuple[int, int, int]) -> None:
        dtype = next((p.dtype for p in self.model.parameters() if p.is_floating_point()), torch.float32)
        with torch.no_grad(), self.sizes.listen(), _Dispatch(self):
            images = torch.empty(1, *size, device="meta", dtype=dtype)
            output = self.model(images)
        if isinstance(self.store, Recorder) and self.sizes.misses_features():
            self.finished = True
            model: Any = self.model
            with torch.no_grad(), _Dispatch(self):
                self.sizes.found_intermediates(model.forward_intermediates(images, intermediates_only=True))
        for tensor in _tensors(output):
            self.shapes.append(tuple(tensor.shape))
            for dim in self.dims(tensor):
                self.store.pin(dim, OUTPUT)

    def dims(self, tensor: Tensor) -> Dims:
        record = self._records.get(id(tensor))
        if record is None:
            name = self._names.get(id(tensor))
            dims = (None,) * tensor.ndim if name is None else self.store.parameter_dims(name, tensor)
            record = self._records[id(tensor)] = (tensor, dims, name is not None)
        return record[1]

    def set_dims(self, tensor: Tensor, dims: Sequence[Dim]) -> None:
        assert len(dims) == tensor.ndim, (tuple(tensor.shape), dims)
        self._records[id(tensor)] = (tensor, tuple(dims), self._all_weights)

    def is_weight(self, tensor: Tensor) -> bool:
        self.dims(tensor)
        return self._records[id(tensor)][2]

    def found_size(self, size: int, ids: Dim, role: str = "") -> None:
        if isinstance(self.store, Recorder) and isinstance(ids, np.ndarray) and size > 1:
            other = self.sizes.found(size, ids, role)
            if other is not None:
                self.store.tie(other, ids)

    def merged(self, size: int, ids: np.ndarray) -> None:
        if self.tie_merged and isinstance(self.store, Recorder):
            self.found_size(size, ids)
            for other in self.sizes.running_inputs(size):
                self.store.tie(other, ids)

    def count(self, factor: int, dims: Sequence[tuple[int, Dim]]) -> None:
        if not self.finished:
            self.costs.append((factor, list(dims)))

    def prefers_whole_groups(self, groups: int, num_in: int, num_out: int) -> bool:
        return self._choose(groups >= max(num_in, num_out))

    def keeps_outer(self, outer: int) -> bool:
        heads = self.sizes.has_heads(outer)
        self.has_heads |= heads
        return self._choose(heads and self.whole_heads)

    def _choose(self, preferred: bool) -> bool:
        """Decide once; a check of the thinned model follows the decisions made on the full one."""
        if self.following is not None:
            return next(self.following, preferred)
        self.choices.append(preferred)
        return preferred

    def see(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        named = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | kwargs
        inputs = [*_tensors(list(named.values()))]
        self._all_weights = bool(inputs) and all(self.is_weight(tensor) for tensor in inputs)
        apply_rule(self, func, named, out)
        constants = tuple(value for value in named.values() if isinstance(value, float))
        if not self.finished:
            self.log.append((func, constants))


class _Dispatch(TorchDispatchMode):
    def __init__(self, shadow: Shadow) -> None:
        super().__init__()
        self.shadow = shadow

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out: Any
        if func is BATCH_NORM and not args[5]:
            out = _normalised(*args)
        elif func is CONCATENATE and all(t.is_contiguous() and t.ndim == args[0][0].ndim for t in args[0]):
            out = _concatenated(*args)
        else:
            out = func(*args, **kwargs)
        self.shadow.see(func, args, kwargs, out)
        return out


def _normalised(data: Tensor, *own: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """BatchNorm in eval mode; PyTorch's own takes most of a shadow run, being decomposed in Python."""
    running_mean = own[2]
    if running_mean is None or running_mean.shape != data.shape[1:2]:
        raise RuntimeError(
            f"BatchNorm of {0 if running_mean is None else len(running_mean)} channels reads {data.shape[1]}"
        )
    nothing = torch.empty(0, device="meta")
    contiguous = data.is_contiguous()
    out = torch.empty(data.shape, dtype=data.dtype, device="meta") if contiguous else torch.empty_like(data)
    return out, nothing, nothing


def _concatenated(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Concatenation of contiguous tensors; PyTorch's own is slow on `meta`, too."""
    shape = list(tensors[0].shape)
    dim %= len(shape)
    others = [[*tensor.shape[:dim], *tensor.shape[dim + 1 :]] for tensor in tensors]
    if others.count(others[0]) < len(others):
        raise RuntimeError(f"can't concatenate shapes {[tuple(tensor.shape) for tensor in tensors]}")
    shape[dim] = sum(tensor.shape[dim] for tensor in tensors)
    return torch.empty(shape, dtype=functools.reduce(torch.promote_types, (t.dtype for t in tensors)), device="meta")


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in _tensors(item)]
    return []


def _confirm(model: nn.Module, full: Shadow, solution: Solution) -> ChannelGraph:
    """Pin the groups whose removal breaks the model, found by bisection.

    Layers of the same name but for numbers (the blocks of a stage) are likely to fail alike. So the bisection goes over
    such kinds first, and where the first and the last group of a kind both fail, the whole kind is pinned.
    """
    graph = solution.graph
    kinds: dict[str, list[int]] = {}
    for number, group in enumerate(graph.groups):
        if group.prunable:
            kinds.setdefault(re.sub(r"\d+", "#", group.name), []).append(number)
    reasons: dict[int, str] = {}

    def search(sets: list[list[int]]) -> None:
        numbers = [number for numbers in sets for number in numbers]
        problem = _try_removing(model, full, solution, numbers)
        if not problem:
            return
        if len(numbers) == 1:
            reasons[numbers[0]] = problem
        elif len(sets) > 1:
            search(sets[: len(sets) // 2])
            search(sets[len(sets) // 2 :])
        else:
            search([numbers[:1]])
            search([numbers[-1:]])
            if numbers[0] in reasons and numbers[-1] in reasons:
                reasons.update(dict.fromkeys(numbers[1:-1], reasons[numbers[0]]))
            elif inner := numbers[1:-1]:
                search([inner[: len(inner) // 2], inner[len(inner) // 2 :]] if len(inner) > 1 else [inner])

    search(list(kinds.values()))
    if reasons:
        good = [[n for n in numbers if n not in reasons] for numbers in kinds.values()]
        together = [number for numbers in good for number in numbers]
        if _try_removing(model, full, solution, together):  # fine alone, not together: add kind by kind
            fine: list[int] = []
            for numbers in good:
                if problem := _try_removing(model, full, solution, [*fine, *numbers]):
                    reasons.update(dict.fromkeys(numbers, problem))
                else:
                    fine += numbers
    groups = tuple(replace(g, reason=reasons[i]) if i in reasons else g for i, g in enumerate(graph.groups))
    return replace(graph, groups=groups)


def _try_removing(model: nn.Module, full: Shadow, solution: Solution, numbers: list[int]) -> str:
    """Thin these groups at random and run; return what goes wrong, or nothing."""
    if not numbers:
        return ""
    graph = solution.graph
    random = np.random.default_rng(0)
    keep: dict[str, np.ndarray] = {}
    removed = np.zeros(len(solution.roots), dtype=bool)
    for number in numbers:
        group = graph.groups[number]
        order = random.permutation(len(group.units))
        # about half, but different numbers in different groups, so that sizes agree only where they must
        least, most = max(2, len(order) // 3), max(2, len(order) * 2 // 3)
        num_kept = min(least + number % (most - least + 1), len(order) - 1)
        keep[group.name] = np.sort(group.units[order[:num_kept]].ravel())
        removed[solution.unit_roots[number][order[num_kept:]]] = True
    try:
        thin = thin_copy(model, graph, keep, meta=True).eval()
        check = Shadow(thin, Checker(*solution.kept(removed)), following=iter(full.choices))
        check.run(graph.input_size)
    except MismatchError as error:
        return f"removing channels breaks the model: {error}"
    except Exception as error:  # the model's own code, any error is possible
        return f"removing channels breaks the model: {type(error).__name__}: {str(error).splitlines()[0][:200]}"
    if check.log != full.log:
        return "removing channels changes what the model computes"
    if check.shapes != full.shapes:
        return "removing channels changes the shape of the output"
    return ""
