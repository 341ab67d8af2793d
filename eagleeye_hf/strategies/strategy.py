"""A strategy: everything that tells a thin network from the full one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from eagleeye_hf.channels.graph import ChannelGraph, check_blocks, check_widths
from eagleeye_hf.errors import EagleEyeError


@dataclass(frozen=True)
class Strategy:
    """What is kept of a network. It goes unchanged from proposal through scoring, journal, file, report and card."""

    widths: tuple[int, ...]
    """Channels kept, one integer per group of the graph, in its order."""
    removed_blocks: tuple[str, ...] = ()
    """Names of the residual branches that are gone."""
    image_size: int | None = None
    """Side of the square input in pixels; None: the size at which the network was traced."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(map(int, self.widths)))
        object.__setattr__(self, "removed_blocks", tuple(self.removed_blocks))

    def to_dict(self) -> dict[str, Any]:
        return {
            "widths": list(self.widths),
            "removed_blocks": list(self.removed_blocks),
            "image_size": self.image_size,
        }

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Strategy:
        """
        Raises:
            EagleEyeError: the values are none that `to_dict` gives.
        """
        widths, blocks, size = data.get("widths"), data.get("removed_blocks", []), data.get("image_size")
        if not isinstance(widths, (list, tuple)) or not all(type(width) is int and width > 0 for width in widths):
            raise EagleEyeError(f"`widths` of a strategy are positive integers; got {widths!r:.200}")
        if not isinstance(blocks, (list, tuple)) or not all(isinstance(name, str) for name in blocks):
            raise EagleEyeError(f"`removed_blocks` of a strategy are names of modules; got {blocks!r:.200}")
        if size is not None and not (type(size) is int and size > 0):
            raise EagleEyeError(f"`image_size` of a strategy is a number of pixels; got {size!r:.200}")
        return Strategy(tuple(widths), tuple(blocks), size)


def as_strategy(value: Strategy | Sequence[int]) -> Strategy:
    """A strategy, or the one of these widths."""
    return value if isinstance(value, Strategy) else Strategy(tuple(value))


def check_strategy(graph: ChannelGraph, strategy: Strategy) -> Strategy:
    """The strategy, once it is known to fit the graph, in the one form that all of its kind have.

    Groups that go with a block have their full width, blocks are in the graph's order, and the image size is None where
    it is that of the trace.

    Raises:
        EagleEyeError: widths that the groups can't have, a block that can't go, or an image size that the graph does
            not know.
    """
    widths = list(check_widths(graph, strategy.widths))
    removed = check_blocks(graph, strategy.removed_blocks)
    for number in graph.gone_groups(removed):
        widths[number] = graph.groups[number].channels
    if strategy.image_size not in (None, *graph.image_sizes):
        raise EagleEyeError(
            f"`image_size={strategy.image_size}`: the network was traced for {_listed(graph.image_sizes)} pixels; "
            "trace it with this one among `image_sizes`"
        )
    size = None if strategy.image_size == graph.image_size else strategy.image_size
    return Strategy(tuple(widths), removed, size)


def _listed(sizes: Sequence[int]) -> str:
    return ", ".join(map(str, sizes))


def input_size_of(graph: ChannelGraph, strategy: Strategy) -> tuple[int, int, int]:
    """(channels, height, width) of an image of the thin network."""
    size = strategy.image_size
    return graph.input_size if size is None else (graph.input_size[0], size, size)


def named_widths(graph: ChannelGraph, strategy: Strategy) -> dict[str, int]:
    """Channels kept per name of a prunable group that is there, as files for people and other versions hold them."""
    gone = graph.gone_groups(strategy.removed_blocks)
    return {
        group.name: width
        for number, (group, width) in enumerate(zip(graph.groups, strategy.widths, strict=True))
        if group.prunable and number not in gone
    }


def ratios_of(graph: ChannelGraph, strategy: Strategy) -> np.ndarray:
    """The fraction of channels removed from each prunable group; shape `(num_prunable,)`."""
    pairs = zip(strategy.widths, graph.groups, strict=True)
    return np.array([1 - width / group.channels for width, group in pairs if group.prunable])


def aligned_divisors(graph: ChannelGraph, alignment: int) -> tuple[int, ...]:
    """Per prunable group the divisor for a runtime's alignment, a power of two: the alignment itself or, in a group
    that would have fewer than two widths to choose from, the largest part of it that leaves two."""
    divisors = []
    for group in graph.prunable:
        divisor = alignment
        while divisor > 1 and group.channels < 2 * divisor:
            divisor //= 2
        divisors.append(divisor)
    return tuple(divisors)


def multiples_of(graph: ChannelGraph, divisor: int | Sequence[int]) -> np.ndarray:
    """The multiple of channels that each prunable group's width must be: of the divisor, and of the group's step.

    Args:
        divisor: one for all, or one per prunable group.
    Raises:
        EagleEyeError: a divisor is no positive integer, or there is not one per prunable group.
    """
    divisors = [divisor] * len(graph.prunable) if isinstance(divisor, (int, float)) else list(divisor)
    wrong = [one for one in divisors if one < 1 or int(one) != one]
    if wrong:
        raise EagleEyeError(f"`divisor` is a positive integer number of channels; got {wrong[0]}")
    if len(divisors) != len(graph.prunable):
        raise EagleEyeError(
            f"`divisor` needs one number per prunable group ({len(graph.prunable)}); got {len(divisors)}"
        )
    return np.array([math.lcm(int(one), group.step) for one, group in zip(divisors, graph.prunable, strict=True)])


def widths_from_ratios(
    graph: ChannelGraph, ratios: Sequence[float] | np.ndarray, divisor: int | Sequence[int] = 1
) -> np.ndarray:
    """Turn the fraction removed from each prunable group into integer widths.

    A group of c channels keeps `c - floor(c * ratio)` of them, as the paper's code does, rounded up to a multiple of
    the divisor and of the group's step.

    Args:
        ratios: fraction *removed*, in `[0, 1)`; shape `(num_prunable,)` or `(num_candidates, num_prunable)`, ordered
            as `graph.prunable`.
        divisor: widths round to a multiple of this many channels, never below one multiple; one number for all
            groups, or one per prunable group.
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
    channels = np.array(graph.widths)[prunable]
    multiples = multiples_of(graph, divisor)
    kept = round_widths(channels, array, multiples)
    widths = np.broadcast_to(np.array(graph.widths), (*array.shape[:-1], len(graph.groups))).copy()
    widths[..., prunable] = kept
    return widths


def round_widths(channels: np.ndarray, ratios: np.ndarray, multiples: np.ndarray) -> np.ndarray:
    """What groups keep of their channels; all arguments have one entry per prunable group along the last dimension."""
    kept = channels - np.floor(channels * ratios + 1e-9).astype(np.int64)
    return np.minimum(channels, -(-np.maximum(kept, 1) // multiples) * multiples)
