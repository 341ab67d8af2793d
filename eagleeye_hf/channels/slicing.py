"""A thinner model of the same class."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import torch
from torch import nn

from eagleeye_hf.channels.cut import thin_copy
from eagleeye_hf.channels.graph import ChannelGraph, check_blocks
from eagleeye_hf.errors import EagleEyeError
from eagleeye_hf.networks.description import unwrap_model


def slice_model(
    model: nn.Module,
    graph: ChannelGraph,
    keep: Mapping[str, Sequence[int] | torch.Tensor | np.ndarray],
    removed_blocks: Collection[str] = (),
) -> nn.Module:
    """Remove channels and blocks.

    The result computes what `model` does when nothing reads the removed channels, and the branches of the removed
    blocks add zero.

    Args:
        model: the network that `graph` was traced from, or one of the same shapes.
        keep: kept channels, ascending, per name of a pruned group, as `choose_channels` gives them.
        removed_blocks: names of blocks of `graph.removable`, in whose places `nn.Identity` comes.
    Returns:
        A new model of the same class; the sizes that its Python keeps (`num_features`, `feature_info`, `groups`...)
        follow. The input is untouched.
    Raises:
        EagleEyeError: `keep` names an unknown or pinned group, or channels that it can't keep; a block is unknown or
            can't go.
    """
    groups = {group.name: group for group in graph.groups}
    chosen: dict[str, np.ndarray] = {}
    for name, channels in keep.items():
        group = groups.get(name)
        if group is None:
            raise EagleEyeError(f"`keep` names {name!r}, which is no channel group; see `graph.groups`")
        kept = np.asarray(channels, dtype=np.int64)
        if group.reason and len(kept) != group.channels:
            raise EagleEyeError(f"`keep`: group {name} can't be pruned ({group.reason}); leave it out")
        if not len(kept) or kept.min() < 0 or kept.max() >= group.channels or np.any(np.diff(kept) <= 0):
            raise EagleEyeError(
                f"`keep[{name!r}]` holds channel numbers from 0 to {group.channels - 1}, ascending, at least one; "
                f"got {channels}"
            )
        whole = np.isin(group.units, kept)
        if not np.array_equal(whole.all(1), whole.any(1)):
            raise EagleEyeError(f"`keep[{name!r}]` splits channels that go together by {group.step}; see `group.units`")
        chosen[name] = kept
    return thin_copy(unwrap_model(model), graph, chosen, check_blocks(graph, removed_blocks))
