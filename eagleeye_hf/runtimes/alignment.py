"""The multiple of channels at which a runtime is fast: measured once, and remembered."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from eagleeye_hf.networks.running import evaluation_mode
from eagleeye_hf.runtimes.cache import cache_folder, identify, read_cache, write_cache
from eagleeye_hf.runtimes.latency import draw_images, take_turns
from eagleeye_hf.runtimes.runtime import Runtime
from eagleeye_hf.telling import say
from eagleeye_hf.tracing.trace import trace_model

UNMEASURED = 8
"""Where nothing could be measured."""
LEAST_ON_GPU = 8
"""What half precision on a GPU asks for, whatever float32 does there: at half the MACs and any width ResNet-50 took 1.1
to 1.2 times the full network's milliseconds, and 0.75 in multiples of 8 (benchmarks/gpu.md)."""
COARSEST = 32
MULTIPLES = (16, 8, 4, 2, 1)
WIDTHS = {16: (80, 112, 144), 8: (88, 104, 136), 4: (84, 100, 132), 2: (90, 102, 126), 1: (91, 103, 125)}
"""Per multiple: widths that are multiples of it, and of no larger one."""
GRID = (64, 96, 128, 160)
"""Widths that every runtime likes, between which others are compared."""
WORTH = 0.12
"""Extra time per work from which on a finer multiple counts as slow."""
PIXELS, ROUNDS = 14, 60


class Convolutions(nn.Module):
    """Typical layers in a row: pointwise, depthwise, pointwise, 3 x 3, with BatchNorm and ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *self._layer(channels, 1), *self._layer(channels, 3, channels), *self._layer(channels, 1),
            *self._layer(channels, 3),
        )  # fmt: skip
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(channels, 10)

    @staticmethod
    def _layer(channels: int, kernel: int, groups: int = 1) -> list[nn.Module]:
        conv = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=groups, bias=False)
        return [conv, nn.BatchNorm2d(channels), nn.ReLU()]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.pool(self.layers(x)).flatten(1))


def measure_alignment(runtime: Runtime) -> int:
    """The smallest multiple of channels that costs the runtime nothing: whose convolutions take at most an eighth more
    than those of coarse widths at the same work.

    Found by timing, which takes seconds, and remembered for this runtime, machine and number of threads.
    """
    file, known = cache_folder() / "alignment.json", json.dumps(identify(runtime), sort_keys=True)
    found = read_cache(file)
    if not isinstance(found.get(known), int):
        excess = measure_excess(runtime)
        chosen, least = COARSEST, 1 if runtime.place.threads else LEAST_ON_GPU
        for multiple in MULTIPLES:
            if multiple < least or excess[multiple] > WORTH:
                break
            chosen = multiple
        found[known] = chosen
        text = ", ".join(f"{multiple}: {extra:+.0%}" for multiple, extra in sorted(excess.items()))
        say(f"{runtime.place} likes multiples of {chosen} channels (extra time by multiple: {text})")
        write_cache(file, found)
    return int(found[known])


def measure_excess(runtime: Runtime) -> dict[int, float]:
    """Per multiple: the median extra time of its widths over what coarse ones take at the same work."""
    widest = max(GRID)
    model = Convolutions(widest).eval().to(runtime.device)
    graph = trace_model(model, (widest, PIXELS, PIXELS))
    pinned = {g.name for g in graph.groups if not g.prunable}
    widths = sorted({*GRID, *(w for several in WIDTHS.values() for w in several)})
    with evaluation_mode(model):
        load = runtime.load_thin(model, graph, draw_images(runtime, graph.input_size))
        programs = [load({g.name: np.arange(w) for g in graph.groups if g.name not in pinned}) for w in widths]
        took = {w: min(turns) for w, turns in zip(widths, take_turns(programs, ROUNDS), strict=True)}
    return {multiple: excess_of(WIDTHS[multiple], took) for multiple in MULTIPLES}


def excess_of(widths: Sequence[int], took: dict[int, float]) -> float:
    """Median extra time of these widths over a smooth curve through the coarse ones."""
    curve = np.polynomial.Polynomial.fit(GRID, [took[w] for w in GRID], 2)
    return float(np.median([took[w] / curve(w) - 1 for w in widths]))
