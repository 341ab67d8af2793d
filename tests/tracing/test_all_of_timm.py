"""The whole of timm: whatever has a BatchNorm is traced, and what is removed from it, channels and blocks, is removed
exactly."""

from typing import Any

import pytest
import timm
import torch
from torch import nn

from eagleeye_hf import ChannelGraph, EagleEyeError, count_cost, slice_model, trace_model
from tests.helpers import make_model, random_blocks, random_keep, silence, silence_blocks, strategy_of

LARGE = 250e6
"""Parameters above which float64 would take too much memory."""


def trace_small(model: nn.Module) -> ChannelGraph:
    """Trace at the least image size that the model takes."""
    channels, *pixels = model.pretrained_cfg["input_size"]
    small = [] if model.pretrained_cfg.get("fixed_input_size") else [s for s in (64, 96, 128, 160) if s < pixels[0]]
    for size in small:
        try:
            return trace_model(model, (channels, size, size))
        except EagleEyeError:
            continue
    return trace_model(model, (channels, *pixels))


@pytest.mark.slow
@pytest.mark.parametrize("name", timm.list_models(exclude_filters="eagleeye_pruned"))  # it is what a checkpoint says
def test_slicing_equals_silencing(name):
    with torch.device("meta"):
        empty = timm.create_model(name)
    if not any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in empty.modules()):
        pytest.skip("has no BatchNorm")
    is_large = sum(p.numel() for p in empty.parameters()) > LARGE
    dtype, bound = (torch.float32, 1e-4) if is_large else (torch.float64, 1e-9)
    model = make_model(name).to(dtype)
    graph = trace_small(model)
    images = torch.randn(2, *graph.input_size, dtype=dtype)
    worst = compare(model, graph, images)
    if worst >= bound:  # very deep networks with large gains multiply rounding errors by millions
        for layer in model.modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.weight is not None:
                layer.weight.data.mul_(0.4)
        worst = compare(model, graph, images)
    assert worst < bound


def compare(model: nn.Module, graph: ChannelGraph, images: torch.Tensor) -> float:
    """Largest error of two thin versions, relative to the largest output."""
    errors = []
    for seed, ratio, removed in ((0, 0.5, []), (1, None, random_blocks(graph, 1))):
        keep = random_keep(graph, seed, ratio)
        thin = slice_model(model, graph, keep, removed)
        strategy = strategy_of(graph, keep, removed)
        assert count_cost(graph, strategy).params == sum(p.numel() for p in thin.parameters())
        silenced = silence_blocks(silence(model, graph, keep), graph, removed)
        with torch.inference_mode():
            result, expected = first(thin(images)), first(silenced(images))
        errors.append(float((result - expected).abs().max() / expected.abs().max()))
    return max(errors)


def first(output: Any) -> torch.Tensor:
    return output[0] if isinstance(output, (list, tuple)) else output
