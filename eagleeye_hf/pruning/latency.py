"""Measured milliseconds."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Sequence

import torch
from torch import nn


def measure_latency(
    models: Sequence[nn.Module], input_size: Sequence[int], batch_size: int = 1, rounds: int = 20
) -> list[float]:
    """Median milliseconds of one forward pass per model, in eval mode, on the device where it lives.

    The models take turns, so that a machine that slows down slows them all.
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
    return [statistics.median(own) for own in times]


def describe_device(device: torch.device) -> str:
    """The name to print beside a latency."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type.upper()} ({platform.machine()}, {torch.get_num_threads()} threads)"


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
