"""A model of milliseconds, fitted to profiles of sub-nets, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from scipy.optimize import nnls
from torch import nn

from eagleeye_hf.channels.cost import split_rows
from eagleeye_hf.channels.cut import named_tensors
from eagleeye_hf.channels.graph import ChannelGraph
from eagleeye_hf.channels.removal import block_of
from eagleeye_hf.runtimes.runtime import OperatorTime, Place

PADDED = (1, 8, 16, 32)
"""Runtimes compute as if channels were filled up to multiples of these."""
ODD = (4, 8, 16)
"""Channels that are no multiples of these may take another, slower way."""
PAIRS = ((1, 1), (8, 8), (16, 8), (16, 16), (32, 8), (32, 1))
"""Multiples of output and input channels, for their products."""
RIDGE = 1e-2
REACH = 0.2
"""How far a profiled network tells of others, in fractions of a layer's channels."""
CLEAR = 0.7
"""A correction is used where it leaves less than this of the error at the networks that it was not made from."""
LARGEST = 0.3
"""Errors of a layer that are corrected, as a fraction; larger ones are something else's work."""


@dataclass(frozen=True, kw_only=True)
class ChannelCount:
    """How many channels a layer has along one side, as a linear function of the widths of groups."""

    constant: int
    per_group: tuple[tuple[int, int], ...] = ()
    """(number of the group, channels here per channel of it)."""

    def __call__(self, widths: np.ndarray) -> np.ndarray:
        """Of widths, shape `(num_candidates, num_groups)`; shape `(num_candidates,)`."""
        start = np.full(len(widths), self.constant, dtype=np.int64)
        return sum((widths[:, group] * count for group, count in self.per_group), start)

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> ChannelCount:
        return ChannelCount(constant=data["constant"], per_group=tuple(map(tuple, data["per_group"])))


@dataclass(frozen=True, kw_only=True)
class Correction:
    """What a sum of smooth parts misses: runtimes choose other algorithms for some sizes.

    Kernel regression (Gaussian process) of the relative error over a layer's channels.
    """

    points: tuple[tuple[float, float], ...]
    """Output and input channels of the profiled networks, as fractions of the full network's."""
    weights: tuple[float, ...]
    full: tuple[int, int]
    """Channels of the full network."""

    def __call__(self, outputs: np.ndarray, inputs: np.ndarray) -> np.ndarray:
        places = np.stack([outputs, inputs], axis=1) / np.array(self.full)
        return _kernel(places, np.array(self.points)) @ np.array(self.weights)

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Correction:
        return Correction(
            points=tuple(map(tuple, data["points"])), weights=tuple(data["weights"]), full=tuple(data["full"])
        )


@dataclass(frozen=True, kw_only=True)
class LayerTime:
    """Milliseconds of a layer, and of what follows it up to the next."""

    weight: str
    """The tensor that it multiplies with."""
    outputs: ChannelCount
    inputs: ChannelCount
    """Of one group of a grouped convolution."""
    depthwise: bool
    coefficients: tuple[float, ...]
    """Of `layer_features`, none negative."""
    correction: Correction | None = None
    """Where one is clear."""

    def predict(self, widths: np.ndarray) -> np.ndarray:
        outputs, inputs = self.outputs(widths), self.inputs(widths)
        smooth = layer_features(outputs, inputs, self.depthwise) @ np.array(self.coefficients)
        return smooth if self.correction is None else smooth * (1 + self.correction(outputs, inputs))

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> LayerTime:
        sides = {name: ChannelCount.from_dict(data[name]) for name in ("outputs", "inputs")}
        correction = data["correction"] and Correction.from_dict(data["correction"])
        return LayerTime(**{**data, **sides, "coefficients": tuple(data["coefficients"]), "correction": correction})


@dataclass(frozen=True, kw_only=True)
class WholeTime:
    """Milliseconds of whole networks at one image size: from the sum of their layers' at the full one.

    Profiling takes time for each layer, and so does a runtime, whatever the image size: what the layers' sum is wrong
    by goes by how many there are, and is gone with those of a removed block.
    """

    image_size: int
    factor: float = 1.0
    """On the layers' sum."""
    per_layer: float = 0.0
    """Milliseconds for each layer that is left; negative where profiling adds more than the runtime itself."""
    offset: float = 0.0
    """Milliseconds, of either sign."""

    def __call__(self, layers_ms: np.ndarray, num_layers: np.ndarray) -> np.ndarray:
        return self.factor * layers_ms + self.per_layer * num_layers + self.offset

    def scaled(self, factor: float, offset: float) -> WholeTime:
        """What it gives, times a factor and shifted."""
        return WholeTime(
            image_size=self.image_size,
            factor=self.factor * factor,
            per_layer=self.per_layer * factor,
            offset=self.offset * factor + offset,
        )


@dataclass(frozen=True, kw_only=True)
class LatencyModel:
    """Milliseconds as a sum over layers, each a function of its own channels and of their alignment."""

    place: Place
    layers: tuple[LayerTime, ...]
    constant: float = 0.0
    """Milliseconds before the first layer."""
    whole: tuple[WholeTime, ...]
    """Per image size."""
    full_ms: float
    """Measured on the full network."""
    error: float
    """Mean relative error on networks that were not fitted to."""
    seconds: float = 0.0
    """That profiling, measuring and fitting took."""

    def predict(self, graph: ChannelGraph, rows: np.ndarray) -> np.ndarray:
        """Milliseconds of strategies: widths of shape `(num_candidates, num_groups)`, or rows of `strategy_rows`."""
        layers_ms, num_layers = self.sum_layers(graph, rows)
        image_sizes = split_rows(graph, rows)[2]
        if image_sizes is None:
            image_sizes = np.full(len(rows), graph.image_size)
        total = np.empty(len(rows))
        for size in np.unique(image_sizes):
            at_size = image_sizes == size
            total[at_size] = self.at_size(int(size))(layers_ms[at_size], num_layers[at_size])
        return total

    def at_size(self, image_size: int) -> WholeTime:
        """Of networks at an image size; `KeyError` where none was measured there."""
        return {whole.image_size: whole for whole in self.whole}[image_size]

    def sum_layers(self, graph: ChannelGraph, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Milliseconds of the layers that are left, profiled at the full image size, and how many these are."""
        widths, removed, _ = split_rows(graph, rows)
        numbers = {block.name: number for number, block in enumerate(graph.blocks)}
        total, left = np.full(len(widths), self.constant), np.zeros(len(widths))
        for layer in self.layers:
            block = block_of(numbers, layer.weight)
            there = 1.0 if removed is None or block < 0 else 1.0 - removed[:, block]
            total += layer.predict(widths) * there
            left += there
        return total, left

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> LatencyModel:
        layers = tuple(map(LayerTime.from_dict, data["layers"]))
        whole = tuple(WholeTime(**one) for one in data["whole"])
        return LatencyModel(**{**data, "place": Place.from_dict(data["place"]), "layers": layers, "whole": whole})

    def adjusted(self, factor: float, offset: float, full_ms: float) -> LatencyModel:
        """The same, its milliseconds times a factor and shifted."""
        return replace(self, whole=tuple(one.scaled(factor, offset) for one in self.whole), full_ms=full_ms)


def layer_features(outputs: np.ndarray, inputs: np.ndarray, depthwise: bool) -> np.ndarray:
    """What a layer's time is a sum of: one, its channels and their product, each filled up and each where it is odd.

    Spatial sizes don't change with widths, so they are in the coefficients. Shape `(num_candidates, num_features)`.
    """
    columns = [np.ones(len(outputs))]
    for side in (outputs,) if depthwise else (outputs, inputs):
        columns += [_fill(side, multiple) for multiple in PADDED]
        columns += [side * (side % multiple != 0) for multiple in ODD]
    if not depthwise:
        columns += [_fill(outputs, first) * _fill(inputs, second) for first, second in PAIRS]
        columns += [outputs * inputs * (side % multiple != 0) for multiple in (4, 16) for side in (outputs, inputs)]
    return np.array(columns, dtype=float).T


def _fill(channels: np.ndarray, multiple: int) -> np.ndarray:
    return -(-channels // multiple) * multiple


def fit_layers(
    model: nn.Module, graph: ChannelGraph, widths: np.ndarray, profiles: Sequence[Sequence[OperatorTime]]
) -> tuple[list[LayerTime], float]:
    """Fit each layer's milliseconds to its profiles; layers of one shape and role are fitted together.

    Args:
        widths: of the profiled networks, shape `(num_networks, num_groups)`.
        profiles: of each.
    Returns:
        The layers, and the milliseconds before the first of them.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in named_tensors(model)}
    times = [_segments(profile) for profile in profiles]
    counts = _channel_counts(graph, shapes)
    alike: dict[tuple, list[str]] = {}
    for weight in times[0]:
        if weight:
            role = weight.split(".")[-2:-1]
            alike.setdefault((shapes[weight], *role), []).append(weight)
    layers = {}
    for (shape, *_), weights in alike.items():
        depthwise = len(shape) > 2 and shape[1] == 1
        sides = {w: [counts.get((w, dim)) or ChannelCount(constant=shape[dim]) for dim in (0, 1)] for w in weights}
        features = {w: layer_features(sides[w][0](widths), sides[w][1](widths), depthwise) for w in weights}
        took = {w: np.array([one.get(w, 0.0) for one in times]) for w in weights}
        common = _fit(np.vstack([features[w] for w in weights]), np.concatenate([took[w] for w in weights]))
        for weight in weights:
            guess = features[weight] @ common
            scale = float(np.median(took[weight] / np.maximum(guess, 1e-9))) if len(weights) > 1 else 1.0
            outputs, inputs = sides[weight]
            smooth = LayerTime(
                weight=weight,
                outputs=outputs,
                inputs=inputs,
                depthwise=depthwise,
                coefficients=tuple((common * scale).tolist()),
            )
            layers[weight] = replace(smooth, correction=_correct(smooth, graph, widths, took[weight]))
    return [layers[w] for w in times[0] if w], float(np.median([one.get("", 0.0) for one in times]))


def _correct(layer: LayerTime, graph: ChannelGraph, widths: np.ndarray, took: np.ndarray) -> Correction | None:
    """What the profiles tell beyond the smooth sum; None where that is not clear, judged by leaving each one out."""
    errors = np.clip(took / np.maximum(layer.predict(widths), 1e-9) - 1, -LARGEST, LARGEST)
    whole = np.array([graph.widths])
    full = int(layer.outputs(whole)[0]), int(layer.inputs(whole)[0])
    places = np.stack([layer.outputs(widths), layer.inputs(widths)], axis=1) / np.array(full)
    inverse = np.linalg.inv(_kernel(places, places) + np.eye(len(places)))
    weights = inverse @ errors
    left_out = weights / np.diag(inverse)  # the error at each network of a regression without it
    if np.square(left_out).mean() >= CLEAR**2 * np.square(errors).mean():
        return None
    return Correction(points=tuple(map(tuple, places.tolist())), weights=tuple(weights.tolist()), full=full)


def _kernel(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.exp(-np.square(first[:, None] - second[None]).sum(-1) / (2 * REACH**2))


def _segments(profile: Sequence[OperatorTime]) -> dict[str, float]:
    """Milliseconds per weight: of its operator, and of those that follow up to the next one with a weight."""
    found, current = {"": 0.0}, ""
    for operator in profile:
        current = operator.weight or current
        found[current] = found.get(current, 0.0) + operator.milliseconds
    return found


def _channel_counts(graph: ChannelGraph, shapes: Mapping[str, tuple[int, ...]]) -> dict[tuple[str, int], ChannelCount]:
    """Per dimension of a tensor that can lose channels."""
    parts: dict[tuple[str, int], dict[int, int]] = {}
    for number, group in enumerate(graph.groups):
        for member in group.members:
            part = parts.setdefault((member.tensor, member.dim), {})
            part[number] = part.get(number, 0) + member.index.shape[1]
    return {
        (tensor, dim): ChannelCount(
            constant=shapes[tensor][dim] - sum(graph.groups[g].channels * count for g, count in part.items()),
            per_group=tuple(part.items()),
        )
        for (tensor, dim), part in parts.items()
    }


def _fit(features: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Least squares of relative errors, no coefficient negative, a little shrunk."""
    scale = np.maximum(features.max(0), 1e-9)
    weight = 1 / np.maximum(times, 0.02 * times.max() + 1e-6)
    rows = np.vstack([features / scale * weight[:, None], RIDGE * len(times) ** 0.5 * np.eye(len(scale))])
    coefficients, _ = nnls(rows, np.concatenate([times * weight, np.zeros(len(scale))]))
    return coefficients / scale
