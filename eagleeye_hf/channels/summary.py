"""What each channel group costs, for people to read."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from eagleeye_hf.channels.cost import count_cost
from eagleeye_hf.channels.graph import ChannelGraph, check_widths


@dataclass(frozen=True, kw_only=True)
class GroupSummary:
    name: str
    channels: int
    width: int
    """Channels kept; all of them where no strategy is given, none where a removed block takes the group along."""
    step: int
    macs: int
    """MACs of one image that go when the group shrinks to a single step, everything else staying."""
    params: int
    """Parameters, likewise."""
    members: tuple[str, ...]
    """Tensors that shrink with it."""
    reason: str
    """Why it is pinned; empty for a prunable group."""


@dataclass(frozen=True, kw_only=True)
class BlockSummary:
    name: str
    macs: int
    """MACs of one image that go with the block, everything else staying."""
    params: int
    removed: bool
    reason: str
    """Why it can't go; empty for one that can."""


def summarise_blocks(graph: ChannelGraph, removed_blocks: Collection[str] = ()) -> list[BlockSummary]:
    """One row per block, in the order of the model's modules."""
    full, without = (
        count_cost(graph, graph.widths),
        np.zeros((len(graph.blocks), len(graph.blocks) + 1), dtype=np.int64),
    )
    np.fill_diagonal(without, 1)
    without[:, -1] = graph.image_size
    rows = np.hstack([np.tile(np.array(graph.widths), (len(graph.blocks), 1)), without])
    left = count_cost(graph, rows)
    return [
        BlockSummary(
            name=block.name,
            macs=int(full.macs - macs) if block.removable else 0,
            params=int(full.params - params) if block.removable else 0,
            removed=block.name in removed_blocks,
            reason=block.reason,
        )
        for block, macs, params in zip(graph.blocks, np.asarray(left.macs), np.asarray(left.params), strict=True)
    ]


def summarise_groups(
    graph: ChannelGraph, widths: Sequence[int] | None = None, removed_blocks: Collection[str] = ()
) -> list[GroupSummary]:
    """One row per channel group, in the order of execution; those that are gone with a block have no width."""
    kept = check_widths(graph, widths) if widths is not None else graph.widths
    gone = graph.gone_groups(removed_blocks)
    kept = tuple(0 if number in gone else width for number, width in enumerate(kept))
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
