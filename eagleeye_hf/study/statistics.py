"""How well a score foretells accuracy, with bootstrap intervals over sub-nets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

LEVEL = 0.9
"""Of all intervals."""
RESAMPLES = 2000
CHUNK = 2_000_000
"""Numbers in memory at a time."""

Rows = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""A statistic of each row of two arrays of shape `(num_rows, num_subnets)`."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number and the interval in which it lies with a probability of 90%, were other sub-nets drawn."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f})"


def estimate(statistic: Rows, x: np.ndarray, y: np.ndarray, seed: int = 0) -> Estimate:
    """A statistic of paired values, and its percentile bootstrap interval (Efron 1979)."""
    value = float(statistic(x[None], y[None])[0])
    drawn = np.random.default_rng(seed).integers(len(x), size=(RESAMPLES, len(x)))
    size = max(1, CHUNK // len(x) ** 2)
    found = np.concatenate([statistic(x[part], y[part]) for part in np.split(drawn, range(size, RESAMPLES, size))])
    found = found[np.isfinite(found)]  # a resample of one sub-net alone has no correlation
    if not len(found):
        return Estimate(value=value, low=float("nan"), high=float("nan"))
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value=value, low=float(low), high=float(high))


def pearson(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Linear correlation of each row; NaN where a row does not vary."""
    x, y = x - x.mean(1, keepdims=True), y - y.mean(1, keepdims=True)
    scale = np.sqrt((x**2).sum(1) * (y**2).sum(1))
    return np.where(scale > 0, (x * y).sum(1) / np.where(scale > 0, scale, 1), np.nan)


def spearman(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Correlation of ranks."""
    return pearson(rankdata(x, axis=1), rankdata(y, axis=1))


def kendall(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Tau-b: pairs that both order alike less those that they order otherwise, ties taken into account."""
    first, second = (np.sign(values[:, :, None] - values[:, None, :]) for values in (x, y))
    scale = np.sqrt((first**2).sum((1, 2)) * (second**2).sum((1, 2)))
    return np.where(scale > 0, (first * second).sum((1, 2)) / np.where(scale > 0, scale, 1), np.nan)


def regret(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """How far the accuracy of the sub-net that scores highest falls short of the best."""
    chosen = np.take_along_axis(y, x.argmax(1)[:, None], 1)[:, 0]
    return y.max(1) - chosen


def top_half(accuracy: np.ndarray) -> np.ndarray:
    """Places of the better half after fine-tuning."""
    return np.argsort(-accuracy, kind="stable")[: -(-len(accuracy) // 2)]
