"""Budgets, and how far strategies are from meeting one."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple, Protocol

import numpy as np

from eagleeye_hf.channels.cost import count_cost
from eagleeye_hf.channels.graph import ChannelGraph
from eagleeye_hf.configs import Within, check_fields
from eagleeye_hf.errors import EagleEyeError

COUNTS = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9}
UNITS = {"macs": COUNTS, "params": COUNTS, "latency": {"": 1.0, "us": 1e-3, "ms": 1.0, "s": 1e3}}
"""By what is bounded: the units of absolute bounds. Latency is in milliseconds."""
WORDS = {"macs": "of the MACs", "params": "of the parameters", "latency": "of the latency"}


class Limit(NamedTuple):
    """One bound of a budget."""

    value: float
    is_fraction: bool
    """Of the full network's, or absolute."""

    def bound(self, full: float) -> float:
        """As an absolute number, where the full network has this much."""
        return self.value * full if self.is_fraction else self.value


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What the pruned network may cost: each bound a fraction of the full model up to 1, or an absolute number.

    A bare number in (0, 1] is a fraction; an absolute one may carry a unit: `Budget(latency="4.2ms", macs="300M")`.
    """

    latency: float | str | None = None
    """Milliseconds of one forward pass in the runtime where the network will run."""
    macs: float | str | None = None
    """Multiply-accumulates of one image."""
    params: float | str | None = None
    """Parameters."""
    tolerance: Annotated[float, Within("(0, 1)")] = 0.005
    """How far the tightest bound may be missed, up or down, as a fraction of the full model."""

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.limits:
            raise EagleEyeError("a budget needs `latency`, `macs` or `params`, for instance `Budget(macs=0.5)`")

    @functools.cached_property
    def limits(self) -> dict[str, Limit]:
        """The bounds that are set, read."""
        given = {name: getattr(self, name) for name in UNITS}
        return {name: _read_limit(name, value) for name, value in given.items() if value is not None}

    def __str__(self) -> str:
        return ", ".join(f"{name}={getattr(self, name)}" for name in self.limits)


def _read_limit(name: str, value: float | str) -> Limit:
    match = re.fullmatch(r"\s*([\d.]+(?:[eE][+-]?\d+)?)\s*([a-zA-Z]*)\s*", str(value))
    try:
        number = float(match[1]) if match and not isinstance(value, bool) else -1.0
    except ValueError:
        number = -1.0
    unit = match[2] if match else ""
    if number <= 0 or not np.isfinite(number) or unit not in UNITS[name]:
        raise EagleEyeError(_wrong_limit(name, value))
    if not unit and number <= 1:
        return Limit(number, True)
    if name == "latency":
        return Limit(number * UNITS[name][unit], False)
    if not unit and not number.is_integer():
        raise EagleEyeError(_wrong_limit(name, value))
    return Limit(float(round(number * UNITS[name][unit])), False)


def _wrong_limit(name: str, value: object) -> str:
    number = "number of milliseconds, as 4.2ms" if name == "latency" else "integer, as 300M"
    return f"`{name}` is a fraction of the full model in (0, 1], or an absolute {number}; got {value}"


class LatencyPredictor(Protocol):
    """Predicts milliseconds in a runtime."""

    @property
    def full_ms(self) -> float:
        """Of the full network, measured."""

    def predict(self, graph: ChannelGraph, widths: np.ndarray) -> np.ndarray:
        """Milliseconds of strategies, as `count_cost` takes many; shape `(num_candidates,)`."""


class Bounds:
    """A budget on one network.

    Args:
        latency: needed where the budget bounds milliseconds.
    """

    def __init__(self, graph: ChannelGraph, budget: Budget, latency: LatencyPredictor | None = None) -> None:
        if "latency" in budget.limits and latency is None:
            raise EagleEyeError(
                f"`latency={budget.latency}` needs measurements: give `latency`, a model of milliseconds"
            )
        self.graph, self.budget, self.latency = graph, budget, latency
        self.full = self._measure(np.array([graph.widths]))
        if "latency" in self.full and latency is not None:
            self.full["latency"] = np.array([latency.full_ms])  # what was measured
        self.targets = {
            name: limit.value if limit.is_fraction else limit.value / float(self.full[name][0])
            for name, limit in budget.limits.items()
        }
        if all(target > 1 for target in self.targets.values()):
            costs = ", ".join(f"{name} {values[0]:,.4g}" for name, values in self.full.items())
            raise EagleEyeError(f"the budget ({budget}) allows more than the full network costs ({costs}); lower it")

    def fractions(self, widths: np.ndarray) -> dict[str, np.ndarray]:
        """What each bounded quantity is at these widths, as a fraction of the full model."""
        return {name: values / self.full[name][0] for name, values in self._measure(np.atleast_2d(widths)).items()}

    def excess(self, widths: np.ndarray) -> np.ndarray:
        """How far the tightest bound is exceeded (negative: met), as a fraction of the full model."""
        return np.max([part - self.targets[name] for name, part in self.fractions(widths).items()], axis=0)

    def load(self, rows: np.ndarray) -> np.ndarray:
        """What is taken of the tightest bound; 1: all of it."""
        return np.max([part / self.targets[name] for name, part in self.fractions(rows).items()], axis=0)

    @property
    def slack(self) -> float:
        """The tolerance, as a part of the bound."""
        return self.budget.tolerance / min(self.targets.values())

    def meets(self, rows: np.ndarray) -> np.ndarray:
        """Whether no bound is exceeded by more than the tolerance."""
        return self.excess(rows) <= self.budget.tolerance

    def fits(self, widths: np.ndarray) -> np.ndarray:
        return np.abs(self.excess(widths)) <= self.budget.tolerance

    def describe(self, widths: Sequence[int]) -> str:
        """What is left of each bounded quantity, in words."""
        return " and ".join(f"{part[0]:.3f} {WORDS[name]}" for name, part in self.fractions(np.array(widths)).items())

    def weights(self) -> np.ndarray:
        """How much removing each prunable group alone moves the bounds; shape `(num_prunable,)`, 1 on average.

        A group that moves none of them still counts a little, so that no strategy is out of reach.
        """
        prunable = [number for number, group in enumerate(self.graph.groups) if group.prunable]
        alone = np.tile(np.array(self.graph.widths), (len(prunable), 1))
        alone[np.arange(len(prunable)), prunable] = [self.graph.groups[number].step for number in prunable]
        saved = np.mean([1 - part for part in self.fractions(alone).values()], axis=0)
        saved = np.maximum(saved, 0.02 * max(float(saved.max()), 1e-12))
        return saved / saved.mean()

    def _measure(self, widths: np.ndarray) -> dict[str, np.ndarray]:
        cost = count_cost(self.graph, widths)
        values = {"macs": np.asarray(cost.macs, dtype=float), "params": np.asarray(cost.params, dtype=float)}
        if self.latency is not None:
            values["latency"] = self.latency.predict(self.graph, widths)
        return {name: values[name] for name in self.budget.limits}
