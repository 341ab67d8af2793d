"""Strategies drawn to meet a budget."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import numpy as np

from eagleeye_hf.channels.graph import ChannelGraph
from eagleeye_hf.errors import EagleEyeError
from eagleeye_hf.strategies.budget import Bounds, Budget, LatencyModel
from eagleeye_hf.strategies.strategy import Strategy, strategy_from_widths, widths_from_ratios

Sampler = Literal["projected", "paper"]
ATTEMPTS = {"projected": 50, "paper": 5000}
REPAIRS = 60
"""Single steps of widths that may bring a strategy within the tolerance."""
MAX_TILT = 3000.0


class Space:
    """The strategies of one network that meet one budget.

    Args:
        divisor: widths are multiples of it.
        max_ratio: the largest fraction removed from a group.
    Raises:
        EagleEyeError: there are none; the message says what is possible.
    """

    def __init__(self, bounds: Bounds, divisor: int = 1, max_ratio: float = 0.7) -> None:
        if not 0 < max_ratio < 1:
            raise EagleEyeError(f"`max_ratio` is the largest fraction removed, in (0, 1); got {max_ratio}")
        graph = bounds.graph
        if not graph.prunable:
            raise EagleEyeError("`graph` has no prunable group: every channel is pinned; `graph.groups` says why")
        self.bounds, self.divisor, self.max_ratio = bounds, divisor, max_ratio
        self.graph, self.num_groups = graph, len(graph.prunable)
        self.prunable = np.array([number for number, group in enumerate(graph.groups) if group.prunable])
        self.multiples = np.array([math.lcm(divisor, graph.groups[number].step) for number in self.prunable])
        self.smallest = self.widths(np.full(self.num_groups, max_ratio))
        if float(bounds.excess(self.smallest)[0]) > bounds.budget.tolerance:
            raise EagleEyeError(
                f"the budget ({bounds.budget}) is out of reach: with `max_ratio={max_ratio}` and `divisor={divisor}` "
                f"the smallest model still has {bounds.describe(self.smallest.tolist())}. "
                f"Raise the budget, or raise `max_ratio`{', or lower `divisor`' if divisor > 1 else ''}."
            )
        self._tilt = bounds.weights()

    def widths(self, ratios: np.ndarray) -> np.ndarray:
        return widths_from_ratios(self.graph, ratios, self.divisor)

    def uniform(self) -> Strategy:
        """The same ratio everywhere; where its steps are too coarse for the tolerance, just below the bound."""

        def along(t: np.ndarray) -> np.ndarray:
            return np.repeat(t[:, None] * self.max_ratio, self.num_groups, axis=1)

        return self.strategy(self.widths(along(self.bisect(along, np.zeros(1), np.ones(1))))[0], "uniform")

    def project(self, ratios: np.ndarray, random: np.random.Generator) -> np.ndarray | None:
        """Widths that meet the budget, near these ratios of one strategy; None where none was found."""
        widths = self.widths(self.shift(ratios[None]))
        return widths[0] if self.bounds.fits(widths)[0] else self.repair(widths[0], random)

    def shift(self, ratios: np.ndarray) -> np.ndarray:
        """Move ratios, shape `(num, num_prunable)`, to the budget's surface, all groups of a strategy together.

        Each ratio goes where it would lie had it been drawn from an exponential density instead of a uniform one, the
        steeper the more its group costs. Uniform draws that happen to meet a bound on a sum are distributed so (Gibbs'
        conditioning principle); neither is one corner of the space preferred, nor do draws pile up at a limit.
        """
        place = np.clip(ratios / self.max_ratio, 1e-6, 1 - 1e-6)

        def along(t: np.ndarray) -> np.ndarray:
            return self.max_ratio * _tilted(place, t[:, None] * self._tilt)

        limit = np.full(len(ratios), MAX_TILT)
        return along(self.bisect(along, -limit, limit))

    def draw(self, random: np.random.Generator) -> np.ndarray:
        """Ratios uniform in `[0, max_ratio]` (paper, section 3.2), not yet projected."""
        return random.random(self.num_groups) * self.max_ratio

    def strategy(self, widths: np.ndarray, origin: str) -> Strategy:
        return strategy_from_widths(self.graph, widths.tolist(), origin)

    def bisect(self, along: Callable[[np.ndarray], np.ndarray], low: np.ndarray, high: np.ndarray) -> np.ndarray:
        """The smallest parameter, hence the heaviest network, that is within the budget."""
        for _ in range(40):
            middle = (low + high) / 2
            fits = self.bounds.excess(self.widths(along(middle))) <= 0
            low, high = np.where(fits, low, middle), np.where(fits, middle, high)
        return high

    def repair(self, widths: np.ndarray, random: np.random.Generator) -> np.ndarray | None:
        """Change single widths by a step, in random order, until the budget is met."""
        full = np.array(self.graph.widths)
        miss = abs(float(self.bounds.excess(widths)[0]))
        for _ in range(REPAIRS):
            moves = np.tile(widths, (2 * self.num_groups, 1))
            rows = np.arange(self.num_groups)
            moves[rows, self.prunable] -= self.multiples
            top = moves[self.num_groups + rows, self.prunable] // self.multiples * self.multiples + self.multiples
            moves[self.num_groups + rows, self.prunable] = np.minimum(top, full[self.prunable])
            moves = moves[np.all(moves >= self.smallest, axis=1)]
            misses = np.abs(self.bounds.excess(moves)) if len(moves) else np.array([])
            inside, better = misses <= self.bounds.budget.tolerance, misses < miss
            if not better.any():
                return None
            pick = random.choice(np.flatnonzero(inside if inside.any() else better))
            widths, miss = moves[pick], float(misses[pick])
            if inside.any():
                return self._aligned(widths)
        return None

    def _aligned(self, widths: np.ndarray) -> np.ndarray | None:
        """Stepping down from a full width that is no multiple itself would break the divisor."""
        own, full = widths[self.prunable], np.array(self.graph.widths)[self.prunable]
        return widths if np.all((own % self.multiples == 0) | (own == full)) else None


def sample_strategies(
    graph: ChannelGraph,
    budget: Budget,
    num: int,
    seed: int = 0,
    *,
    divisor: int = 1,
    max_ratio: float = 0.7,
    sampler: Sampler = "projected",
    latency: LatencyModel | None = None,
) -> list[Strategy]:
    """Draw strategies that meet a budget; the first is the uniform one.

    Ratios are drawn uniformly in `[0, max_ratio]` per group (paper, section 3.2). `"projected"` then moves each draw
    to the budget; `"paper"` throws draws away until one meets it. Strategy i depends on `(seed, i)` alone.

    Args:
        num: how many, the uniform one included.
        divisor: widths are multiples of it.
        max_ratio: the largest fraction removed from a group.
        latency: predicts milliseconds where the budget bounds them.
    Raises:
        EagleEyeError: `num` or `max_ratio` is out of range, or the budget can't be met; the message says what can.
    """
    if num < 1:
        raise EagleEyeError(f"`num` is the number of strategies, at least 1; got {num}")
    space = Space(Bounds(graph, budget, latency), divisor, max_ratio)
    drawn = draw_random(space, seed, range(1, num), sampler)
    return [space.uniform(), *(drawn[number] for number in range(1, num))]


def draw_random(space: Space, seed: int, numbers: range, sampler: Sampler = "projected") -> dict[int, Strategy]:
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
        widths = space.widths(space.shift(ratios) if sampler == "projected" else ratios)
        nearest = min(nearest, float(np.abs(space.bounds.excess(widths)).min()))
        fits = space.bounds.fits(widths)
        for number, random, own, fit in zip(pending, generators, widths, fits, strict=True):
            repaired = own if fit else space.repair(own, random) if sampler == "projected" else None
            if repaired is not None:
                found[number] = space.strategy(repaired, "random")
    missing = len(numbers) - len(found)
    if missing:
        raise EagleEyeError(
            f"only {len(found)} of {len(numbers)} random strategies meet the budget ({space.bounds.budget}) within "
            f"`tolerance={space.bounds.budget.tolerance}` at `divisor={space.divisor}` (the nearest draw misses it by "
            f"{nearest:.4f} of the full model). Raise `tolerance`, or lower `divisor`."
        )
    return found


def _tilted(place: np.ndarray, tilt: np.ndarray) -> np.ndarray:
    """The quantile at `place` of the density proportional to `exp(tilt * x)` on `[0, 1]`."""
    up = np.where(tilt >= 0, place, 1 - place)
    steep = np.maximum(np.abs(tilt), 1e-6)
    x = 1 + np.log(up + (1 - up) * np.exp(-steep)) / steep
    return np.clip(np.where(tilt >= 0, x, 1 - x), 0, 1 - 1e-12)
