"""timm model -> ChannelGraph, by shadow execution.

A copy of the model runs once on the `meta` device, where nothing is computed, while a dispatch mode sees every ATen
call and lets `rules` follow the channels. Then the copy, thinned at random, runs through the same rules, which must
find every tie of the full model again: groups for which they do not are pinned, so that a graph never breaks its model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from torch import nn

from eagleeye_hf.channels.cut import meta_copy
from eagleeye_hf.channels.graph import ChannelGraph, SizeAttribute
from eagleeye_hf.channels.removal import block_of
from eagleeye_hf.errors import EagleEyeError, describe_error
from eagleeye_hf.networks.description import resolve_input_size, unwrap_model
from eagleeye_hf.tracing.confirmation import confirm_groups
from eagleeye_hf.tracing.costs import cost_model
from eagleeye_hf.tracing.groups import Grouping, group_ids
from eagleeye_hf.tracing.ids import Recorder
from eagleeye_hf.tracing.run import Shadow

ATTENTION_CHOICES = ((False, False), (True, False), (True, True), (False, True))
"""(remove whole heads instead of channels inside them, tie what heads give to the inputs and sizes of their module).
Which of them reaches most depends on how a model writes its attention, so all are tried where there are heads."""


def trace_model(
    model: nn.Module, input_size: Sequence[int] | None = None, *, image_sizes: Sequence[int] = ()
) -> ChannelGraph:
    """Find the channel groups and the blocks of a network, and what they cost.

    Args:
        model: any module whose forward takes one image batch; it is not changed, and nothing is computed.
        input_size: `(channels, height, width)` of one image; by default what the model takes. MACs are counted
            at this size.
        image_sizes: sides of square images, in pixels, at which the cost is to be known, too.
    Returns:
        The groups in the order of execution. What can't be removed exactly is pinned, with a reason.
    Raises:
        EagleEyeError: `input_size` is no image size, or the forward pass fails on it or at one of `image_sizes`.
    """
    model = unwrap_model(model)
    size = resolve_input_size(model, input_size)
    best: ChannelGraph | None = None
    for whole_heads, tie_merged in ATTENTION_CHOICES:
        store = Recorder()
        full = Shadow(meta_copy(model).eval(), store, whole_heads, tie_merged)
        try:
            full.run(size)
        except Exception as error:  # raised by the code of the model, so any is possible
            raise EagleEyeError(
                f"`model` ({type(model).__name__}) can't be traced at `input_size={size}`: {describe_error(error)}"
            ) from error
        grouping = group_ids(store)
        graph = _build_graph(full, grouping, size)
        if best is None or _reach(graph) > _reach(best):  # confirming only takes away
            graph = confirm_groups(full, grouping, graph)
            best = graph if best is None or _reach(graph) > _reach(best) else best
        if not full.has_heads:
            break
    assert best is not None
    return with_image_sizes(model, best, image_sizes) if image_sizes else best


def with_image_sizes(
    model: nn.Module, graph: ChannelGraph, image_sizes: Sequence[int], left_out: list[int] | None = None
) -> ChannelGraph:
    """The graph with the model's cost at other sizes of the image.

    Args:
        left_out: takes the sizes at which that can't be told, instead of an error.
    Raises:
        EagleEyeError: the forward pass fails at one of them, or does something else there.
    """
    if image_sizes and len(set(graph.input_size[1:])) > 1:
        raise EagleEyeError(
            f"`image_sizes` are sides of square images, and the network's are {graph.input_size[1]} x "
            f"{graph.input_size[2]} pixels; leave them out"
        )
    factors = []
    for size in sorted({int(size) for size in image_sizes} - {graph.image_size}):
        try:
            factors.append((size, _factors_at(model, graph, size)))
        except EagleEyeError:
            if left_out is None:
                raise
            left_out.append(size)
    return replace(graph, cost=replace(graph.cost, macs_at=tuple(factors)))


def _factors_at(model: nn.Module, graph: ChannelGraph, size: int) -> tuple[int, ...]:
    """Of each term of the MACs, at another size of the image."""
    try:
        other = trace_model(model, (graph.input_size[0], size, size))
    except EagleEyeError as error:
        raise EagleEyeError(f"`image_sizes`: the network takes no images of {size} pixels: {error}") from error
    terms = [term[1:] for term in other.cost.macs]
    if (
        other.blocks != graph.blocks
        or terms != [term[1:] for term in graph.cost.macs]
        or not np.array_equal(other.cost.coefficients, graph.cost.coefficients)
        or not np.array_equal(other.cost.constants, graph.cost.constants)
    ):
        raise EagleEyeError(f"`image_sizes`: at {size} pixels the network has other channel groups; leave it out")
    return tuple(factor for factor, _, _ in other.cost.macs)


def _build_graph(full: Shadow, grouping: Grouping, input_size: tuple[int, int, int]) -> ChannelGraph:
    attributes = tuple(
        SizeAttribute(module=module, path=path, length=len(ids), parts=parts)
        for (module, path), ids in full.sizes.finish().items()
        if (parts := grouping.channels_in(ids))
    )
    blocks = full.blocks.finish(grouping.groups)
    numbers = {block.name: number for number, block in enumerate(blocks) if block.removable}
    params = [
        (1, [pair for dim, size in enumerate(tensor.shape) for pair in grouping.dims_along(name, dim, size)], name)
        for name, tensor in full.tensors.items()
        if isinstance(tensor, nn.Parameter)
    ]
    cost = cost_model(grouping, full.costs, params, partial(block_of, numbers))
    return ChannelGraph(groups=grouping.groups, blocks=blocks, attributes=attributes, cost=cost, input_size=input_size)


def _reach(graph: ChannelGraph) -> int:
    """How many tensors can shrink."""
    return len({member.tensor for group in graph.prunable for member in group.members})
