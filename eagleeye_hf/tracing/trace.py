"""timm model -> ChannelGraph, by shadow execution.

A copy of the model runs once on the `meta` device, where nothing is computed, while a dispatch mode sees every ATen
call and lets `rules` follow the channels. Then a copy thinned at random runs through the same rules, which must find
every tie of the full model again: groups for which they do not are pinned, so that a graph never breaks its model.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn

from eagleeye_hf.channels.cut import meta_copy, to_eval
from eagleeye_hf.channels.graph import ChannelGraph
from eagleeye_hf.errors import EagleEyeError
from eagleeye_hf.tracing.confirmation import confirm_groups
from eagleeye_hf.tracing.groups import solve
from eagleeye_hf.tracing.ids import Recorder
from eagleeye_hf.tracing.run import Shadow

VIEWS_OF_ATTENTION = ((False, False), (True, False), (True, True), (False, True))
"""(remove whole heads instead of channels inside them, tie what heads give to the inputs and sizes of their module).
Which of them reaches most depends on how a model writes its attention, so all are tried where there are heads."""


@contextmanager
def _uncollected() -> Iterator[None]:
    """Python's garbage collector waits: it would go through all of PyTorch time and again, and find nothing."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@_uncollected()
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
        full = Shadow(to_eval(meta_copy(model)), Recorder(), *view)
        try:
            full.run(size)
        except Exception as error:  # the model's own code, any error is possible
            raise EagleEyeError(
                f"`model` ({type(model).__name__}) can't be traced at `input_size={size}`: "
                f"{type(error).__name__}: {error}"
            ) from error
        solution = solve(full, size)
        if best is None or _reach(solution.graph) > _reach(best):  # confirming only takes away
            graph = confirm_groups(model, full, solution)
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
