"""Pruning ratios, widths, budgets, and strategies drawn to meet them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from eagleeye_hf.channels.cost import Cost, count_cost
from eagleeye_hf.channels.graph import ChannelGraph, check_widths
from eagleeye_hf.errors import EagleEyeError

Sampler = Literal["projected", "paper"]


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What the pruned network may cost: each bound a fraction of the full model up to 1, or an absolute number."""

    macs: float | None = None
    """Multiply-accumulates of one image."""
    params: float | None = None
    """Parameters."""
    tolerance: float = 0.005
    """How far the tightest bound may be missed, up or down, as a fraction of the full model."""

    def __post_init__(self) -> None:
        if self.macs is None and self.params is None:
            raise EagleEyeError("a budget needs `macs` or `params`, for instance `Budget(macs=0.5)`")
        for name in ("macs", "params"):
            value = getattr(self, name)
            if value is not None and not (0 < value <= 1 or (value > 1 and float(value).is_integer())):
                raise EagleEyeError(
                    f"`{name}` is a fraction of the full model in (0, 1], or an absolute integer; got {value}"
                )
        if not 0 < self.tolerance < 1:
            raise EagleEyeError(f"`tolerance` is a fraction of the full model, in (0, 1); got {self.tolerance}")

    def excess(self, cost: Cost, full: Cost) -> np.ndarray:
        """How far the tightest bound is exceeded (negative: met), as a fraction of the full model."""
        misses = []
        for name in ("macs", "params"):
            bound = getattr(self, name)
            if bound is not None:
                total = getattr(full, name)
                misses.append(np.asarray(getattr(cost, name)) / total - (bound if bound <= 1 else bound / total))
        return np.max(misses, axis=0)


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


def sample_strategies(
    graph: ChannelGraph,
    budget: Budget,
    num: int,
    seed: int = 0,
    *,
    divisor: int = 1,
    max_ratio: float = 0.7,
    sampler: Sampler = "projected",
) -> list[Strategy]:
    """Draw strategies that meet a budget; the first is the uniform one.

    Ratios are drawn uniformly in `[0, max_ratio]` per group (paper, section 3.2). `"projected"` then moves each draw
    along a straight line, towards no pruning or towards `max_ratio` everywhere, until it meets the budget; `"paper"`
    throws draws away until one does. Strategy i depends on `(seed, i)` alone.

    Args:
        num: how many, the uniform one included.
        divisor: widths are multiples of it.
        max_ratio: the largest fraction removed from a group.
    Raises:
        EagleEyeError: `num` or `max_ratio` is out of range, or the budget can't be met; the message says what can.
    """
    if num < 1:
        raise EagleEyeError(f"`num` is the number of strategies, at least 1; got {num}")
    if not 0 < max_ratio < 1:
        raise EagleEyeError(f"`max_ratio` is the largest fraction removed, in (0, 1); got {max_ratio}")
    num_groups = len(graph.prunable)
    if not num_groups:
        raise EagleEyeError("`graph` has no prunable group: every channel is pinned; `graph.groups` says why")
    full = count_cost(graph, graph.widths)

    def miss(ratios: np.ndarray) -> np.ndarray:
        return budget.excess(count_cost(graph, widths_from_ratios(graph, ratios, divisor)), full)

    lightest = float(miss(np.full((1, num_groups), max_ratio))[0])
    if lightest > budget.tolerance:
        cost = count_cost(graph, widths_from_ratios(graph, np.full(num_groups, max_ratio), divisor))
        raise EagleEyeError(
            f"the budget ({_describe(budget)}) is out of reach: with `max_ratio={max_ratio}` and `divisor={divisor}` "
            f"the smallest model still has {cost.macs / full.macs:.3f} of the MACs and "
            f"{cost.params / full.params:.3f} of the parameters. Raise the budget, or raise `max_ratio`."
        )
    uniform = _project(np.full((1, num_groups), max_ratio / 2), max_ratio, miss)
    # the uniform strategy is always a candidate: where its steps are too coarse for the tolerance, just below the bound
    chosen = [strategy_from_ratios(graph, uniform[0].tolist(), divisor, "uniform")]
    drawn: dict[int, np.ndarray] = {}
    pending = list(range(1, num))
    for attempt in range(50 if sampler == "projected" else 5000):
        if not pending:
            break
        ratios = np.stack([np.random.default_rng((seed, i, attempt)).random(num_groups) for i in pending]) * max_ratio
        if sampler == "projected":
            ratios = _project(ratios, max_ratio, miss)
        fits = np.abs(miss(ratios)) <= budget.tolerance
        drawn |= {i: row for i, row, fit in zip(pending, ratios, fits, strict=True) if fit}
        pending = [i for i, fit in zip(pending, fits, strict=True) if not fit]
    if pending:
        raise EagleEyeError(
            f"only {len(drawn)} of {num - 1} random strategies meet the budget ({_describe(budget)}) within "
            f"`tolerance={budget.tolerance}` at `divisor={divisor}`. Raise `tolerance`, or lower `divisor`."
        )
    chosen += [strategy_from_ratios(graph, drawn[i].tolist(), divisor, "random") for i in range(1, num)]
    return chosen


def _project(ratios: np.ndarray, max_ratio: float, miss) -> np.ndarray:
    """The heaviest point within the budget on the line from no pruning through `ratios` to the full `max_ratio`."""

    def along(t: np.ndarray) -> np.ndarray:
        t = t[:, None]
        return np.where(t <= 0.5, 2 * t * ratios, ratios + (2 * t - 1) * (max_ratio - ratios))

    low, high = np.zeros(len(ratios)), np.ones(len(ratios))
    for _ in range(40):
        middle = (low + high) / 2
        fits = miss(along(middle)) <= 0
        low, high = np.where(fits, low, middle), np.where(fits, middle, high)
    return along(high)


def _describe(budget: Budget) -> str:
    return ", ".join(
        f"{name}={getattr(budget, name)}" for name in ("macs", "params") if getattr(budget, name) is not None
    )
