"""timm model -> ChannelGraph, by shadow execution.

A copy of the model runs once on the `meta` device, where nothing is computed, while a dispatch mode sees every ATen
call and lets `rules` follow the channels. Then the copy, thinned at random, runs through the same rules, which must
find every tie of the full model again: groups for which they do not are pinned, so that a graph never breaks its model.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from eagleeye_hf.channels.cut import meta_copy
from eagleeye_hf.channels.graph import ChannelGraph, SizeAttribute
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


def trace_model(model: nn.Module, input_size: Sequence[int] | None = None) -> ChannelGraph:
    """Find the channel groups of a network, and what they cost.

    Args:
        model: any module whose forward takes one image batch; it is not changed, and nothing is computed.
        input_size: `(channels, height, width)` of one image; by default what the model takes. MACs are counted
            at this size.
    Returns:
        The groups in the order of execution. What can't be removed exactly is pinned, with a reason.
    Raises:
        EagleEyeError: `input_size` is no image size, or the forward pass fails on it.
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
    return best


def _build_graph(full: Shadow, grouping: Grouping, input_size: tuple[int, int, int]) -> ChannelGraph:
    attributes = tuple(
        SizeAttribute(module=module, path=path, length=len(ids), parts=parts)
        for (module, path), ids in full.sizes.finish().items()
        if (parts := grouping.channels_in(ids))
    )
    params = [
        (1, [pair for dim, size in enumerate(tensor.shape) for pair in grouping.dims_along(name, dim, size)])
        for name, tensor in full.tensors.items()
        if isinstance(tensor, nn.Parameter)
    ]
    cost = cost_model(grouping, full.costs, params)
    return ChannelGraph(groups=grouping.groups, attributes=attributes, cost=cost, input_size=input_size)


def _reach(graph: ChannelGraph) -> int:
    """How many tensors can shrink."""
    return len({member.tensor for group in graph.prunable for member in group.members})
