"""Milliseconds of strategies, measured."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from eagleeye_hf.channels.graph import ChannelGraph
from eagleeye_hf.pruning.importance import Importance
from eagleeye_hf.runtimes.latency import Latency, compare_programs, draw_images
from eagleeye_hf.runtimes.runtime import Loader, Program, Runtime
from eagleeye_hf.strategies.strategy import Strategy, input_size_of


class StrategyTimer:
    """Loads a network's thin versions in a runtime, and times them beside the full one."""

    def __init__(self, model: nn.Module, graph: ChannelGraph, importance: Importance, runtime: Runtime) -> None:
        self.model, self.graph, self.importance, self.runtime = model, graph, importance, runtime
        self._loaders: dict[tuple[int, int, int], Loader] = {}

    def load(self, strategy: Strategy) -> Program:
        """The thin network, ready to run on images of its size."""
        size = input_size_of(self.graph, strategy)
        if size not in self._loaders:
            images = draw_images(self.runtime, size)
            self._loaders[size] = self.runtime.load_thin(self.model, self.graph, images)
        return self._loaders[size](self.importance.choose(strategy.widths), strategy.removed_blocks)

    def measure(self, strategies: Sequence[Strategy]) -> list[Latency]:
        """Milliseconds of one forward pass, each beside the full network at its own image size."""
        full = self.load(Strategy(self.graph.widths))
        return compare_programs(full, [self.load(strategy) for strategy in strategies], self.runtime.place)
