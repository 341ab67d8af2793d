"""Layers that a user wants left alone, or thinned only so far."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

from eagleeye_hf.channels.graph import ChannelGraph, ChannelGroup
from eagleeye_hf.errors import EagleEyeError


def parse_keep(patterns: Sequence[str]) -> list[tuple[str, float]]:
    """Patterns of layers, each with the largest fraction that may be removed from them: `PATTERN` or `PATTERN=RATIO`.

    Raises:
        EagleEyeError: a ratio is no number in [0, 1).
    """
    found = []
    for text in patterns:
        pattern, equals, ratio = text.partition("=")
        try:
            limit = float(ratio) if equals else 0.0
        except ValueError:
            limit = -1.0
        if not pattern or not 0 <= limit < 1:
            raise EagleEyeError(
                f"`keep={text}` is a layer's name or a pattern of names (`blocks.0.*`), or NAME=RATIO with the largest "
                "fraction removed from it, in [0, 1)"
            )
        found.append((pattern, limit))
    return found


def largest_ratios(graph: ChannelGraph, max_ratio: float, keep: Sequence[str] = ()) -> float | tuple[float, ...]:
    """The largest fraction removed from each prunable group: `max_ratio`, less where `keep` says so.

    A pattern holds for a group where it fits the name of a layer that gives these channels, or of a module around it;
    `*` and `?` stand for any characters, dots included. Of several that fit, the strictest counts.

    Args:
        keep: as for `parse_keep`.
    Returns:
        `max_ratio` itself where there is no pattern.
    Raises:
        EagleEyeError: a pattern fits no layer whose channels could be removed, or fits all of them.
    """
    if not keep:
        return max_ratio
    limits = [max_ratio] * len(graph.prunable)
    for pattern, limit in parse_keep(keep):
        fits = [place for place, group in enumerate(graph.prunable) if _fits(pattern, group)]
        if not fits:
            names = ", ".join(group.name for group in graph.prunable[:5])
            raise EagleEyeError(
                f"`keep={pattern}` fits no layer whose channels could be removed; there are {names}, ... "
                "(`eagleeye inspect` lists them)"
            )
        for place in fits:
            limits[place] = min(limits[place], limit)
    if not any(limits):
        raise EagleEyeError(f"`keep={' '.join(keep)}` keeps every channel, so there is nothing to remove")
    return tuple(limits)


def spared_blocks(graph: ChannelGraph, keep: Sequence[str]) -> tuple[str, ...]:
    """The blocks that hold a layer which is to keep all of its channels, or which a pattern itself names."""
    patterns = [pattern for pattern, limit in parse_keep(keep) if not limit]
    return tuple(
        block.name
        for block in graph.removable
        if any(
            fnmatch.fnmatchcase(block.name, pattern) or any(_fits(pattern, graph.groups[n]) for n in block.groups)
            for pattern in patterns
        )
    )


def _fits(pattern: str, group: ChannelGroup) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for layer in _givers(group) for name in _and_around(layer))


def _givers(group: ChannelGroup) -> list[str]:
    """Layers that give a group's channels: those whose first dimension lies along them."""
    return [member.tensor.rpartition(".")[0] for member in group.members if member.dim == 0] or [group.name]


def _and_around(layer: str) -> list[str]:
    parts = layer.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
