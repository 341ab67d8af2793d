"""A model of milliseconds, fitted to measured sub-nets."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import nn

from eagleeye_hf.channels.cost import count_cost
from eagleeye_hf.channels.graph import ChannelGraph
from eagleeye_hf.channels.slicing import slice_model
from eagleeye_hf.pruning.importance import Importance
from eagleeye_hf.runtimes.latency import measure_latency
from eagleeye_hf.strategies.strategy import widths_from_ratios

SAMPLES = 40
TOGETHER = 6
"""Sub-nets that take turns with the full model."""
RIDGE = 1e-2


@dataclass(frozen=True, kw_only=True)
class LatencyModel:
    """Milliseconds as a linear function of MACs, parameters and the fraction of each group that stays."""

    coefficients: tuple[float, ...]
    """Of the features that `latency_features` gives."""
    full_ms: float
    """Measured on the full network."""
    error: float
    """Median relative error on networks that were not fitted to."""
    runtime: str = "torch"

    def predict(self, graph: ChannelGraph, widths: np.ndarray) -> np.ndarray:
        return latency_features(graph, widths) @ np.array(self.coefficients)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> LatencyModel:
        return LatencyModel(**{**data, "coefficients": tuple(data["coefficients"])})


def latency_features(graph: ChannelGraph, widths: np.ndarray) -> np.ndarray:
    """Shape `(num_candidates, 3 + num_prunable)`: one, then fractions kept: of MACs, of parameters, of each group."""
    widths = np.atleast_2d(widths)
    full, cost = count_cost(graph, graph.widths), count_cost(graph, widths)
    prunable = [number for number, group in enumerate(graph.groups) if group.prunable]
    kept = widths[:, prunable] / np.array(graph.widths)[prunable]
    one = np.ones((len(widths), 1))
    return np.hstack([one, np.c_[cost.macs / full.macs, cost.params / full.params], kept])


def fit_latency(
    model: nn.Module, graph: ChannelGraph, importance: Importance, max_ratio: float = 0.8, seed: int = 0
) -> LatencyModel:
    """Measure random sub-nets of all sizes, the full model and a very thin one, and fit a linear model to them.

    Milliseconds are relative to the full model's in the same round, so that a machine under changing load misleads
    little. A quarter of the sub-nets is kept out of the fit to tell its error, then the fit takes all.
    """
    random = np.random.default_rng(seed)
    num_groups = len(graph.prunable)
    sizes = random.random((SAMPLES, 1))
    ratios = np.clip(sizes * max_ratio + random.normal(0, 0.2, (SAMPLES, num_groups)), 0, max_ratio)
    ratios = np.vstack([np.zeros(num_groups), np.full(num_groups, max_ratio), ratios])
    widths = widths_from_ratios(graph, ratios)
    relative, full_times = [], []
    for start in range(0, len(widths), TOGETHER):
        thin = [slice_model(model, graph, importance.choose(row.tolist())) for row in widths[start : start + TOGETHER]]
        full_ms, *times = measure_latency([model, *thin], graph.input_size, rounds=10)
        relative += [ms / full_ms for ms in times]
        full_times.append(full_ms)
    features, target = latency_features(graph, widths), np.array(relative)
    test = np.arange(len(target)) % 4 == 2
    guess = features[test] @ _fit(features[~test], target[~test])
    full = statistics.median(full_times)
    return LatencyModel(
        coefficients=tuple((_fit(features, target) * full).tolist()),
        full_ms=full,
        error=float(np.median(np.abs(guess / target[test] - 1))),
    )


def _fit(features: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Least squares, then once more without the measurements that something else disturbed."""
    misses = np.abs(features @ _ridge(features, target) - target)
    sound = misses <= 3 * np.median(misses) + 1e-9
    return _ridge(features[sound], target[sound])


def _ridge(features: np.ndarray, target: np.ndarray) -> np.ndarray:
    penalty = RIDGE * len(target) * np.eye(features.shape[1])
    penalty[:3, :3] *= 1e-3  # the constant and the totals explain most
    return np.linalg.solve(features.T @ features + penalty, features.T @ target)
