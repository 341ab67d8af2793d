"""Measured milliseconds, and a model of them."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn

from eagleeye_hf.channels.graph import ChannelGraph
from eagleeye_hf.channels.slicing import slice_model
from eagleeye_hf.pruning.importance import Importance
from eagleeye_hf.strategies.budget import LatencyModel, latency_features
from eagleeye_hf.strategies.strategy import widths_from_ratios

SAMPLES = 40
TOGETHER = 6
"""Sub-nets that take turns with the full model."""
RIDGE = 1e-2


def measure_latency(
    models: Sequence[nn.Module],
    input_size: Sequence[int],
    batch_size: int = 1,
    rounds: int = 20,
    pick: Callable[[list[float]], float] = statistics.median,
) -> list[float]:
    """Milliseconds of one forward pass per model, in eval mode, on the device where it lives.

    The models take turns, so that a machine that slows down slows them all.

    Args:
        pick: what to report of the rounds; the minimum is the least disturbed by other work on the machine.
    """
    device = next(iter(models[0].parameters())).device
    images = torch.randn(batch_size, *input_size, device=device)
    times: list[list[float]] = [[] for _ in models]
    modes = [model.training for model in models]
    with torch.inference_mode():
        for round_number in range(rounds + 3):
            for model, own in zip(models, times, strict=True):
                _wait(device)
                started = time.perf_counter()
                model.eval()(images)
                _wait(device)
                if round_number >= 3:
                    own.append((time.perf_counter() - started) * 1000)
    for model, mode in zip(models, modes, strict=True):
        model.train(mode)
    return [pick(own) for own in times]


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
        full_ms, *times = measure_latency([model, *thin], graph.input_size, rounds=10, pick=min)
        relative += [own / full_ms for own in times]
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


def describe_device(device: torch.device) -> str:
    """The name to print beside a latency."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type.upper()} ({platform.machine()}, {torch.get_num_threads()} threads)"


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
