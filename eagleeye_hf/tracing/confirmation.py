"""Whether a model survives the removal of its groups and blocks; those that break it are pinned."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from eagleeye_hf.channels.cut import clear_caches
from eagleeye_hf.channels.graph import Block, ChannelGraph
from eagleeye_hf.channels.removal import is_removed, without_blocks
from eagleeye_hf.channels.resizing import resize_modules
from eagleeye_hf.errors import describe_error
from eagleeye_hf.tracing.groups import Grouping
from eagleeye_hf.tracing.ids import FREE, Checker, Dim, Dims, MismatchError, Product, factors_of
from eagleeye_hf.tracing.run import Shadow


def confirm_groups(full: Shadow, grouping: Grouping, graph: ChannelGraph) -> ChannelGraph:
    """Pin the groups whose removal breaks the model, found by bisection.

    Layers of the same name but for numbers (in blocks of one kind) are likely to fail alike. So the bisection goes over
    such kinds first, and where the first and the last group of a kind both fail, the whole kind is pinned.

    Args:
        full: a finished run; its model gets other sizes.
    """
    kinds = _sort_kinds([group.name for group in graph.groups], [group.prunable for group in graph.groups])
    shapes = {name: tensor.shape for name, tensor in full.tensors.items()}
    problem_of = functools.partial(_try_removing, full, shapes, grouping, graph)
    reasons = _find_reasons(list(kinds.values()), problem_of)
    groups = tuple(replace(g, reason=reasons[i]) if i in reasons else g for i, g in enumerate(graph.groups))
    graph = replace(graph, groups=groups)
    return replace(graph, blocks=_confirm_blocks(full, shapes, grouping, graph))


def _confirm_blocks(
    full: Shadow, shapes: dict[str, torch.Size], grouping: Grouping, graph: ChannelGraph
) -> tuple[Block, ...]:
    """Refuse the blocks without which the model breaks, every group that can shrink being thin."""
    thin = [number for number, group in enumerate(graph.groups) if group.prunable]

    def problem_of(numbers: list[int]) -> str:
        removed = [graph.blocks[number].name for number in numbers]
        return _try_removing(full, shapes, grouping, graph, thin, removed) if removed else ""

    kinds = _sort_kinds([block.name for block in graph.blocks], [block.removable for block in graph.blocks])
    reasons = _find_reasons(list(kinds.values()), problem_of)
    return tuple(replace(b, reason=reasons[i]) if i in reasons else b for i, b in enumerate(graph.blocks))


def _sort_kinds(names: list[str], wanted: list[bool]) -> dict[str, list[int]]:
    """The numbers of what is wanted, by their names without the numbers in them."""
    kinds: dict[str, list[int]] = {}
    for number, name in enumerate(names):
        if wanted[number]:
            kinds.setdefault(re.sub(r"\d+", "#", name), []).append(number)
    return kinds


def _find_reasons(kinds: list[list[int]], problem_of: Callable[[list[int]], str]) -> dict[int, str]:
    """Why numbers can't go, so that all others can go together."""
    reasons: dict[int, str] = {}
    everything = [number for numbers in kinds for number in numbers]
    if not problem_of(everything):
        return reasons
    _bisect(kinds, problem_of, reasons)
    good = [[n for n in numbers if n not in reasons] for numbers in kinds]
    if problem_of([number for numbers in good for number in numbers]):  # fine alone, not together: add kind by kind
        fine: list[int] = []
        for numbers in good:
            if problem := problem_of([*fine, *numbers]):
                reasons.update(dict.fromkeys(numbers, problem))
            else:
                fine += numbers
    return reasons


def _bisect(sets: list[list[int]], problem_of: Callable[[list[int]], str], reasons: dict[int, str]) -> None:
    """Find the groups that can't be removed, and write down why."""
    numbers = [number for numbers in sets for number in numbers]
    problem = problem_of(numbers)
    if not problem:
        return
    if len(numbers) == 1:
        reasons[numbers[0]] = problem
    elif len(sets) > 1:
        _bisect(sets[: len(sets) // 2], problem_of, reasons)
        _bisect(sets[len(sets) // 2 :], problem_of, reasons)
    else:
        _bisect([numbers[:1]], problem_of, reasons)
        _bisect([numbers[-1:]], problem_of, reasons)
        if numbers[0] in reasons and numbers[-1] in reasons:
            reasons.update(dict.fromkeys(numbers[1:-1], reasons[numbers[0]]))
        elif inner := numbers[1:-1]:
            halves = [inner[: len(inner) // 2], inner[len(inner) // 2 :]] if len(inner) > 1 else [inner]
            _bisect(halves, problem_of, reasons)


def _try_removing(
    full: Shadow,
    shapes: dict[str, torch.Size],
    grouping: Grouping,
    graph: ChannelGraph,
    numbers: list[int],
    removed_blocks: Sequence[str] = (),
) -> str:
    """Thin these groups and run, without some blocks; return what goes wrong, or nothing."""
    if not numbers and not removed_blocks:
        return ""
    what = "it" if removed_blocks else "channels"
    random = np.random.default_rng(0)
    is_left = np.ones(len(grouping.roots), dtype=bool)
    for number in numbers:
        units = grouping.unit_roots[number]
        # more of the first than of the last, and the last one: parts of the channels keep no proportion by chance
        order = units[np.argsort(random.random(len(units)) - np.linspace(0, 4, len(units)))]
        order = np.append(order[order != units[-1]], units[-1])
        # about half, but different numbers in different groups, so that sizes agree only where they must
        least, most = max(2, len(order) // 3), max(2, len(order) * 2 // 3)
        is_left[order[min(least + number % (most - least + 1), len(order) - 1) :]] = False
    try:
        kept = _thin_tensors(full, shapes, grouping, is_left)
        clear_caches(full.model)
        ids_of = full.sizes.found_ids
        places = {(a.module, a.path): is_left[grouping.roots[ids_of[a.module, a.path]]] for a in graph.attributes}
        resize_modules(full.model, {path: int(left.sum()) for path, left in places.items()})
        checker = Checker(kept, grouping.pinned)
        choices = iter([choice for choice, module in full.choices if not is_removed(module, removed_blocks)])
        check = Shadow(full.model, checker, tensors=full.tensors, following=choices)
        with without_blocks(full.model, removed_blocks, check.passed.make):
            check.run(graph.input_size)
    except MismatchError as error:
        return f"removing {what} breaks the model: {error}"
    except Exception as error:  # raised by the code of the model, so any is possible
        return f"removing {what} breaks the model: {describe_error(error)}"
    if not removed_blocks and not (check.log == full.log and _same_places(full, check, grouping.roots, is_left)):
        return f"removing {what} changes what the model computes"
    if check.shapes != full.shapes:
        return f"removing {what} changes the shape of the output"
    return ""


def _same_places(full: Shadow, check: Shadow, roots: np.ndarray, is_left: np.ndarray) -> bool:
    """Whether every result of the thinned model lies at what is left of the full one's channels, and has its other
    sizes: the first half of the channels that are left is not what is left of the first half."""
    left: dict[int, np.ndarray] = {}

    def fits(size: int, ids: np.ndarray | None, thin_size: int, thin: np.ndarray | None) -> bool:
        if ids is None:
            return size == thin_size
        if id(ids) not in left:
            at = roots[ids]
            left[id(ids)] = at[is_left[at]]
        wanted = left[id(ids)]
        if len(wanted) != thin_size:
            return False
        return thin is None or bool(np.all((thin == wanted) | (thin == FREE)))

    for (shape, dims), (thin_shape, thin_dims) in zip(full.results, check.results, strict=True):
        for size, dim, thin_size, thin_dim in zip(shape, dims, thin_shape, thin_dims, strict=True):
            wanted, found = factors_of(size, dim), factors_of(thin_size, thin_dim)
            if len(wanted) != len(found):  # flattened of other parts: a bank of kernels, rows and columns of pixels
                continue
            if not all(fits(*part, *thin_part) for part, thin_part in zip(wanted, found, strict=True)):
                return False
    return True


def _thin_tensors(
    full: Shadow, shapes: dict[str, torch.Size], grouping: Grouping, is_left: np.ndarray
) -> dict[str, Dims]:
    """Give the model's tensors, thinned before or not, the sizes that are left; return the roots along each."""
    left = [same.roots[is_left[same.roots]] for same in grouping.label_sets]
    kept: dict[str, Dims] = {}
    for name, tensor in full.tensors.items():
        sizes, dims = list(shapes[name]), list[Dim]()
        for dim in range(len(sizes)):
            factors = tuple((len(left[i]), left[i]) for i in grouping.sets_along.get((name, dim), []))
            if factors:
                sizes[dim] = math.prod(size for size, _ in factors)
            dims.append(Product(factors) if len(factors) > 1 else factors[0][1] if factors else None)
        tensor.data = torch.empty(sizes, dtype=tensor.dtype, device="meta")
        kept[name] = tuple(dims)
    return kept
