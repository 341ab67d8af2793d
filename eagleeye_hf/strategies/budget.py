"""Budgets, and how far widths are from meeting one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from eagleeye_hf.channels.cost import count_cost
from eagleeye_hf.channels.graph import ChannelGraph
from eagleeye_hf.errors import EagleEyeError

BOUNDS = ("macs", "params", "latency_ms")


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What the pruned network may cost: each bound a fraction of the full model up to 1, or an absolute number."""

    macs: float | None = None
    """Multiply-accumulates of one image."""
    params: float | None = None
    """Parameters."""
    latency_ms: float | None = None
    """Milliseconds of one forward pass of one image on the device at hand."""
    tolerance: float = 0.005
    """How far the tightest bound may be missed, up or down, as a fraction of the full model."""

    def __post_init__(self) -> None:
        if not self.bounds:
            raise EagleEyeError("a budget needs `macs` or `params` (or `latency_ms`), for instance `Budget(macs=0.5)`")
        for name, value in self.bounds.items():
            whole = name == "latency_ms" or float(value).is_integer()
            if not (0 < value <= 1 or (value > 1 and np.isfinite(value) and whole)):
                number = "number of milliseconds above 1" if name == "latency_ms" else "integer"
                raise EagleEyeError(
                    f"`{name}` is a fraction of the full model in (0, 1], or an absolute {number}; got {value}"
                )
        if not 0 < self.tolerance < 1:
            raise EagleEyeError(f"`tolerance` is a fraction of the full model, in (0, 1); got {self.tolerance}")

    @property
    def bounds(self) -> dict[str, float]:
        """The bounds that are set."""
        return {name: getattr(self, name) for name in BOUNDS if getattr(self, name) is not None}

    def __str__(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.bounds.items())


@dataclass(frozen=True, kw_only=True)
class LatencyModel:
    """Milliseconds as a linear function of MACs, parameters and the share of each group that stays, fitted to
    measurements."""

    coefficients: tuple[float, ...]
    """Of the features that `latency_features` gives."""
    full_ms: float
    """Measured on the full network."""
    error: float
    """Median relative error on networks that were not fitted to."""

    def predict(self, graph: ChannelGraph, widths: np.ndarray) -> np.ndarray:
        return latency_features(graph, widths) @ np.array(self.coefficients)


def latency_features(graph: ChannelGraph, widths: np.ndarray) -> np.ndarray:
    """Shape `(num_candidates, 3 + num_prunable)`: one, shares of MACs and parameters, the share of each group kept."""
    widths = np.atleast_2d(widths)
    full, cost = count_cost(graph, graph.widths), count_cost(graph, widths)
    prunable = [number for number, group in enumerate(graph.groups) if group.prunable]
    shares = widths[:, prunable] / np.array(graph.widths)[prunable]
    one = np.ones((len(widths), 1))
    return np.hstack([one, np.c_[cost.macs / full.macs, cost.params / full.params], shares])


class Bounds:
    """A budget on one network.

    Args:
        latency: needed where the budget bounds milliseconds.
    """

    def __init__(self, graph: ChannelGraph, budget: Budget, latency: LatencyModel | None = None) -> None:
        if budget.latency_ms is not None and latency is None:
            raise EagleEyeError(
                f"`latency_ms={budget.latency_ms}` needs measurements: give `latency`, "
                "a `LatencyModel` from `fit_latency`"
            )
        self.graph, self.budget, self.latency = graph, budget, latency
        self.full = self._measure(np.array([graph.widths]))
        self.targets = {
            name: value if value <= 1 else value / float(self.full[name][0]) for name, value in budget.bounds.items()
        }

    def shares(self, widths: np.ndarray) -> dict[str, np.ndarray]:
        """What each bounded quantity is at these widths, as a fraction of the full model."""
        return {name: values / self.full[name][0] for name, values in self._measure(np.atleast_2d(widths)).items()}

    def excess(self, widths: np.ndarray) -> np.ndarray:
        """How far the tightest bound is exceeded (negative: met), as a fraction of the full model."""
        return np.max([share - self.targets[name] for name, share in self.shares(widths).items()], axis=0)

    def fits(self, widths: np.ndarray) -> np.ndarray:
        return np.abs(self.excess(widths)) <= self.budget.tolerance

    def describe(self, widths: Sequence[int]) -> str:
        """What is left of each bounded quantity, in words."""
        words = {"macs": "of the MACs", "params": "of the parameters", "latency_ms": "of the latency"}
        return " and ".join(f"{share[0]:.3f} {words[name]}" for name, share in self.shares(np.array(widths)).items())

    def weights(self) -> np.ndarray:
        """How much removing each prunable group alone moves the bounds; shape `(num_prunable,)`, 1 on average.

        A group that moves none of them still counts a little, so that no strategy is out of reach.
        """
        prunable = [number for number, group in enumerate(self.graph.groups) if group.prunable]
        alone = np.tile(np.array(self.graph.widths), (len(prunable), 1))
        alone[np.arange(len(prunable)), prunable] = [self.graph.groups[number].step for number in prunable]
        saved = np.mean([1 - share for share in self.shares(alone).values()], axis=0)
        saved = np.maximum(saved, 0.02 * max(float(saved.max()), 1e-12))
        return saved / saved.mean()

    def _measure(self, widths: np.ndarray) -> dict[str, np.ndarray]:
        cost = count_cost(self.graph, widths)
        values = {"macs": np.asarray(cost.macs, dtype=float), "params": np.asarray(cost.params, dtype=float)}
        if self.latency is not None:
            values["latency_ms"] = self.latency.predict(self.graph, widths)
        return {name: values[name] for name in self.budget.bounds}
