"""Latency models for tests, with laws that are known."""

import numpy as np

from eagleeye_hf import count_cost
from eagleeye_hf.channels.graph import ChannelGraph
from eagleeye_hf.runtimes.latency_model import ChannelCount, LatencyModel, LayerTime, WholeTime, layer_features
from eagleeye_hf.runtimes.runtime import Place

PLACE = Place(runtime="torch", device="CPU", threads=1)


class LinearLaw:
    """Milliseconds are a constant and a multiple of the fractions of MACs and of parameters that stay."""

    def __init__(self, constant: float, macs: float, params: float = 0.0) -> None:
        self.constant, self.macs, self.params = constant, macs, params
        self.full_ms = constant + macs + params

    def predict(self, graph: ChannelGraph, widths: np.ndarray) -> np.ndarray:
        cost, full = count_cost(graph, np.atleast_2d(widths)), count_cost(graph, graph.widths)
        return self.constant + self.macs * cost.macs / full.macs + self.params * cost.params / full.params


def per_channel(graph: ChannelGraph, full_ms: float = 10.0) -> LatencyModel:
    """A model whose milliseconds grow with the channels of each prunable group alike, and with pixels."""
    column = np.flatnonzero(layer_features(np.array([2]), np.array([1]), True)[0] == 2)[0]  # outputs, not filled up
    layers = []
    for number, group in enumerate(graph.groups):
        if group.prunable:
            coefficients = np.zeros(layer_features(np.array([1]), np.array([1]), True).shape[1])
            coefficients[column] = full_ms / len(graph.prunable) / group.channels
            layers.append(
                LayerTime(
                    weight=group.name,
                    outputs=ChannelCount(constant=0, per_group=((number, 1),)),
                    inputs=ChannelCount(constant=1),
                    depthwise=True,
                    coefficients=tuple(coefficients.tolist()),
                )
            )
    whole = tuple(
        WholeTime(image_size=size, factor=(size / graph.image_size) ** 2)
        for size in {graph.image_size, *graph.image_sizes}
    )
    return LatencyModel(place=PLACE, layers=tuple(layers), whole=whole, full_ms=full_ms, error=0.0)
