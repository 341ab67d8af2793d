"""Which channels of a group to keep."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from eagleeye_hf.channels.graph import ChannelGraph, ChannelGroup, Member, check_widths
from eagleeye_hf.channels.thin import named_tensors
from eagleeye_hf.errors import EagleEyeError


def choose_channels(
    model: nn.Module, graph: ChannelGraph, widths: Sequence[int], criterion: str = "l1"
) -> dict[str, torch.Tensor]:
    """Pick the most important channels of every group that shrinks.

    A channel's importance is summed over the filters that produce it (all layers tied by a residual add), each layer's
    scores divided by their mean so that layers of different scale count alike; depthwise filters count only where
    nothing else produces the channel.

    Args:
        widths: channels kept, one integer per group, in the graph's order.
        criterion: `"l1"` (sum of absolute weights; paper, section 3.2), `"l2"`, `"bn_scale"` (absolute BatchNorm
            weight) or `"geometric_median"` (summed distance to the layer's other filters, He et al. 2019).
    Returns:
        Kept channels, ascending, per name of a pruned group.
    Raises:
        EagleEyeError: the criterion is unknown, or the widths don't fit the graph.
    """
    if criterion not in CRITERIA:
        raise EagleEyeError(f"`criterion={criterion!r}` is unknown; choose one of {', '.join(CRITERIA)}")
    tensors = dict(named_tensors(model))
    keep = {}
    for group, width in zip(graph.groups, check_widths(graph, widths), strict=True):
        if width < group.channels:
            scores = score_channels(tensors, group, criterion)
            by_unit = scores[group.units].sum(1)
            best = np.argsort(-by_unit, kind="stable")[: width // group.step]
            keep[group.name] = torch.from_numpy(np.sort(group.units[best].ravel()))
    return keep


def score_channels(tensors: dict[str, Tensor], group: ChannelGroup, criterion: str) -> np.ndarray:
    """The importance of each channel of a group; shape `(channels,)`, comparable within the group only."""
    if criterion == "bn_scale":
        rows = [m for m in group.members if tensors[m.tensor].ndim == 1 and _is_scale(m, tensors)]
    else:
        rows = [m for m in group.members if m.dim == 0 and tensors[m.tensor].ndim >= 2]
        rows = [m for m in rows if tensors[m.tensor][0].numel() > tensors[m.tensor][0, 0].numel()] or rows
    if not rows:
        raise EagleEyeError(f"`criterion={criterion!r}` has nothing to go by in group {group.name}; use another one")
    total = np.zeros(group.channels)
    for member in rows:
        weight = (
            tensors[member.tensor].detach().float().flatten(1) if criterion != "bn_scale" else tensors[member.tensor]
        )
        scores = CRITERIA[criterion](weight.detach()).double().cpu().numpy()[member.index].sum(1)
        total += scores / max(scores.mean(), 1e-12)
    return total


def _is_scale(member: Member, tensors: dict[str, Tensor]) -> bool:
    return member.tensor.endswith("weight") and member.tensor.removesuffix("weight") + "running_var" in tensors


CRITERIA: dict[str, Callable[[Tensor], Tensor]] = {
    "l1": lambda weight: weight.abs().sum(1),
    "l2": lambda weight: weight.square().sum(1).sqrt(),
    "bn_scale": lambda weight: weight.float().abs(),
    "geometric_median": lambda weight: torch.cdist(weight[None], weight[None])[0].sum(1),
}
