"""Pruning ratios and the widths that they give."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from eagleeye_hf.channels.cost import count_cost
from eagleeye_hf.channels.graph import ChannelGraph, check_widths
from eagleeye_hf.errors import EagleEyeError


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """One pruning ratio per prunable group, and the widths it gives."""

    ratios: tuple[float, ...]
    """Fraction of channels removed, ordered as `graph.prunable`."""
    widths: tuple[int, ...]
    """Channels kept, one per group of the graph."""
    macs: int
    params: int
    origin: str
    """How it was found: uniform, random, file..."""


def widths_from_ratios(graph: ChannelGraph, ratios: Sequence[float] | np.ndarray, divisor: int = 1) -> np.ndarray:
    """Turn the share removed from each prunable group into integer widths.

    A group of c channels keeps `c - floor(c * ratio)` of them, as the paper's code does, rounded up to a multiple of
    the divisor and of the group's step.

    Args:
        ratios: fraction *removed*, in `[0, 1)`; shape `(num_prunable,)` or `(num_candidates, num_prunable)`, ordered
            as `graph.prunable`.
        divisor: widths round to a multiple of this many channels, never below one multiple.
    Returns:
        Channels *kept*, shape `(..., num_groups)`; pinned groups keep theirs.
    Raises:
        EagleEyeError: a ratio is outside `[0, 1)`, or there is not one per prunable group.
    """
    array = np.asarray(ratios, dtype=np.float64)
    prunable = [i for i, group in enumerate(graph.groups) if group.prunable]
    if array.shape[-1:] != (len(prunable),):
        raise EagleEyeError(
            f"`ratios` needs one number per prunable group ({len(prunable)} here); got an array of shape {array.shape}"
        )
    if not np.all((array >= 0) & (array < 1)):
        raise EagleEyeError(f"`ratios` are fractions removed, in [0, 1); got {array[(array < 0) | (array >= 1)][:3]}")
    if divisor < 1 or int(divisor) != divisor:
        raise EagleEyeError(f"`divisor` is a positive integer number of channels; got {divisor}")
    channels = np.array(graph.widths)[prunable]
    multiples = np.array([math.lcm(divisor, graph.groups[i].step) for i in prunable])
    kept = channels - np.floor(channels * array + 1e-9).astype(np.int64)
    kept = np.minimum(channels, -(-np.maximum(kept, 1) // multiples) * multiples)
    widths = np.broadcast_to(np.array(graph.widths), (*array.shape[:-1], len(graph.groups))).copy()
    widths[..., prunable] = kept
    return widths


def strategy_from_ratios(graph: ChannelGraph, ratios: Sequence[float], divisor: int = 1, origin: str = "") -> Strategy:
    """A strategy with its widths and cost."""
    return strategy_from_widths(graph, widths_from_ratios(graph, ratios, divisor).tolist(), origin)


def strategy_from_widths(graph: ChannelGraph, widths: Sequence[int], origin: str = "") -> Strategy:
    """A strategy that keeps these widths, one per group of the graph."""
    checked = check_widths(graph, widths)
    cost = count_cost(graph, checked)
    ratios = tuple(1 - w / g.channels for w, g in zip(checked, graph.groups, strict=True) if g.prunable)
    return Strategy(ratios=ratios, widths=checked, macs=int(cost.macs), params=int(cost.params), origin=origin)
