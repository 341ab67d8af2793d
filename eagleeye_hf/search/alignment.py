"""The multiples of channels that a search keeps to."""

from __future__ import annotations

from collections.abc import Sequence

from eagleeye_hf.channels.graph import ChannelGraph
from eagleeye_hf.errors import EagleEyeError
from eagleeye_hf.evaluation.preparation import Preparation
from eagleeye_hf.runtimes.alignment import UNMEASURED
from eagleeye_hf.search.config import SearchConfig
from eagleeye_hf.strategies.budget import Bounds
from eagleeye_hf.strategies.keeping import largest_ratios, spared_blocks
from eagleeye_hf.strategies.sampling import draw_random
from eagleeye_hf.strategies.space import Space
from eagleeye_hf.strategies.strategy import aligned_divisors

TRIED, DIFFERENT = 32, 0.75
"""Random strategies that are drawn at an alignment, and the part of them that must differ from each other."""


def divisor_of(graph: ChannelGraph, config: SearchConfig, alignment: int | None) -> int | tuple[int, ...]:
    """What widths are multiples of: the number given or, by the runtime's alignment, one per prunable group."""
    return aligned_divisors(graph, alignment or UNMEASURED) if config.divisor == "auto" else config.divisor


def open_space(bounds: Bounds, config: SearchConfig, divisor: int | Sequence[int]) -> Space:
    """The strategies that a search may propose under a budget.

    Raises:
        EagleEyeError: there are none.
    """
    limits = largest_ratios(bounds.graph, config.max_ratio, config.keep)
    return Space(bounds, divisor, limits, config.dimensions, spared_blocks(bounds.graph, config.keep))


def loosen(graph: ChannelGraph, config: SearchConfig, prepared: Preparation, alignment: int, seed: int) -> int:
    """The alignment, halved until enough different strategies meet every budget.

    Raises:
        EagleEyeError: they don't at any width.
    """
    while True:
        try:
            for budget in config.budgets:
                bounds = Bounds(graph, budget, prepared.latency)
                space = open_space(bounds, config, aligned_divisors(graph, alignment))
                drawn = draw_random(space, seed, range(1, 1 + TRIED))
                if len(set(drawn.values())) < DIFFERENT * TRIED and alignment > 1:
                    raise EagleEyeError("too few different ones")
            return alignment
        except EagleEyeError:
            if alignment == 1:
                raise
            alignment //= 2
