"""Whether a model survives the removal of its groups; those that break it are pinned."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from torch import nn

from eagleeye_hf.channels.cut import thin_copy, to_eval
from eagleeye_hf.channels.graph import ChannelGraph
from eagleeye_hf.tracing.groups import Solution
from eagleeye_hf.tracing.ids import Checker, MismatchError
from eagleeye_hf.tracing.run import Shadow


def confirm_groups(model: nn.Module, full: Shadow, solution: Solution) -> ChannelGraph:
    """Pin the groups whose removal breaks the model, found by bisection.

    Layers of the same name but for numbers (the blocks of a stage) are likely to fail alike. So the bisection goes over
    such kinds first, and where the first and the last group of a kind both fail, the whole kind is pinned.
    """
    graph = solution.graph
    kinds: dict[str, list[int]] = {}
    for number, group in enumerate(graph.groups):
        if group.prunable:
            kinds.setdefault(re.sub(r"\d+", "#", group.name), []).append(number)
    problem_of = functools.partial(_try_removing, model, full, solution)
    reasons: dict[int, str] = {}
    _bisect(list(kinds.values()), problem_of, reasons)
    if reasons:
        good = [[n for n in numbers if n not in reasons] for numbers in kinds.values()]
        together = [number for numbers in good for number in numbers]
        if problem_of(together):  # fine alone, not together: add kind by kind
            fine: list[int] = []
            for numbers in good:
                if problem := problem_of([*fine, *numbers]):
                    reasons.update(dict.fromkeys(numbers, problem))
                else:
                    fine += numbers
    groups = tuple(replace(g, reason=reasons[i]) if i in reasons else g for i, g in enumerate(graph.groups))
    return replace(graph, groups=groups)


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
        thin = to_eval(thin_copy(model, graph, keep, meta=True))
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
