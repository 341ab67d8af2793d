"""What each channel group costs, for people to read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from eagleeye_hf.channels.cost import count_cost
from eagleeye_hf.channels.graph import ChannelGraph, check_widths


@dataclass(frozen=True, kw_only=True)
class GroupSummary:
    name: str
    channels: int
    width: int
    """Channels kept; all of them where no strategy is given."""
    step: int
    macs: int
    """MACs of one image that go when the group shrinks to a single step, everything else staying."""
    params: int
    """Parameters, likewise."""
    members: tuple[str, ...]
    """Tensors that shrink with it."""
    reason: str
    """Why it is pinned; empty for a prunable group."""


def summarise_groups(graph: ChannelGraph, widths: Sequence[int] | None = None) -> list[GroupSummary]:
    """One row per channel group, in the order of execution."""
    kept = check_widths(graph, widths) if widths is not None else graph.widths
    alone = np.tile(np.array(graph.widths), (len(graph.groups), 1))
    for number, group in enumerate(graph.groups):
        if group.prunable:
            alone[number, number] = group.step
    full, least = count_cost(graph, graph.widths), count_cost(graph, alone)
    saved_macs, saved_params = np.asarray(full.macs - least.macs), np.asarray(full.params - least.params)
    return [
        GroupSummary(
            name=group.name,
            channels=group.channels,
            width=width,
            step=group.step,
            macs=int(macs),
            params=int(params),
            members=tuple(dict.fromkeys(member.tensor for member in group.members)),
            reason=group.reason,
        )
        for group, width, macs, params in zip(graph.groups, kept, saved_macs, saved_params, strict=True)
    ]
