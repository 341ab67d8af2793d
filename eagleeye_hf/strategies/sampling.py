"""Strategies drawn to meet a budget."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from eagleeye_hf.channels.graph import ChannelGraph
from eagleeye_hf.errors import EagleEyeError
from eagleeye_hf.strategies.budget import Bounds, Budget, LatencyPredictor
from eagleeye_hf.strategies.frames import Dimension
from eagleeye_hf.strategies.space import Space
from eagleeye_hf.strategies.strategy import Strategy

Sampler = Literal["projected", "paper"]
ATTEMPTS = {"projected": 50, "paper": 5000}


def sample_strategies(
    graph: ChannelGraph,
    budget: Budget,
    num: int,
    seed: int = 0,
    *,
    divisor: int | Sequence[int] = 1,
    max_ratio: float | Sequence[float] = 0.7,
    sampler: Sampler = "projected",
    latency: LatencyPredictor | None = None,
    dimensions: Sequence[Dimension] = ("width",),
) -> list[Strategy]:
    """Draw strategies that meet a budget; the first ones do so by one dimension alone, the uniform widths first.

    Ratios are drawn uniformly in `[0, max_ratio]` per group (paper, section 3.2). `"projected"` then moves each draw
    to the budget; `"paper"` throws draws away until one meets it. Strategy i depends on `(seed, i)` alone. Where blocks
    may go or the image may shrink, each dimension's part of what has to go is drawn first, uniformly.

    Args:
        num: how many, those of one dimension included.
        divisor: widths are multiples of it; one number, or one per prunable group.
        max_ratio: the largest fraction removed from a group; one number, or one per prunable group.
        latency: predicts milliseconds where the budget bounds them.
        dimensions: what may change; image sizes are those of `graph.image_sizes`.
    Raises:
        EagleEyeError: `num` or `max_ratio` is out of range, or the budget can't be met; the message says what can.
    """
    if num < 1:
        raise EagleEyeError(f"`num` is the number of strategies, at least 1; got {num}")
    space = Space(Bounds(graph, budget, latency), divisor, max_ratio, dimensions)
    first = list(space.singles().values())[:num]
    drawn = draw_random(space, seed, range(len(first), num), sampler)
    return [*first, *(drawn[number] for number in range(len(first), num))]


def draw_random(space: Space, seed: int, numbers: Sequence[int], sampler: Sampler = "projected") -> dict[int, Strategy]:
    """The random strategies of these numbers; each depends on `(seed, number)` alone.

    Raises:
        EagleEyeError: too few draws meet the budget within its tolerance.
    """
    found: dict[int, Strategy] = {}
    nearest = math.inf
    for attempt in range(ATTEMPTS[sampler]):
        pending = [number for number in numbers if number not in found]
        if not pending:
            return found
        generators = [np.random.default_rng((seed, number, attempt)) for number in pending]
        ratios = np.stack([space.draw(random) for random in generators])
        frames = space.draw_frames(generators)
        rows = space.widths(space.shift(ratios, frames) if sampler == "projected" else ratios, frames)
        nearest = min(nearest, float(space.misses(rows).min()))
        if sampler == "projected":
            met = space.repair(rows, generators)
        else:
            met = [row if fits else None for row, fits in zip(rows, space.bounds.fits(rows), strict=True)]
        found |= {number: space.strategy(row) for number, row in zip(pending, met, strict=True) if row is not None}
    missing = len(numbers) - len(found)
    if missing:
        raise EagleEyeError(
            f"only {len(found)} of {len(numbers)} random strategies meet the budget ({space.bounds.budget}) within "
            f"`tolerance={space.bounds.budget.tolerance}` at `divisor={space.divisor_name}` (the nearest draw misses "
            f"it by {nearest:.4f} of the full model). Raise `tolerance`, or lower `divisor`."
        )
    return found
