"""Least-squares repair: what a layer read from removed channels is told from those that stay.

`W_keep += W_removed @ A`, where `A` minimises `|X_removed - X_keep A|^2` over the calibration images' pixels, with
a column of ones and a small ridge. It needs only first and second moments of each reader's inputs, collected once
from the full network.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from eagleeye_hf.channels.cut import kept_places, named_tensors
from eagleeye_hf.channels.graph import ChannelGraph
from eagleeye_hf.errors import EagleEyeError
from eagleeye_hf.networks.description import unwrap_model
from eagleeye_hf.networks.running import AnyBatch, evaluation_mode, images_of, run_model, to_float64

RIDGE = 1e-4
"""Added to the diagonal of the kept channels' moments, as a fraction of their mean."""


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Of the inputs of one reader, over all pixels of all images."""

    count: int
    total: Tensor
    """Sums, shape `(channels,)`."""
    products: Tensor
    """Sums of products, shape `(channels, channels)`."""


def collect_moments(model: nn.Module, graph: ChannelGraph, batches: Iterable[AnyBatch]) -> dict[str, Moments]:
    """One forward pass of the full network over the calibration images; per name of a reader.

    Readers are dense convolutions and linear layers whose inputs can be pruned; a convolution in groups mixes no
    channels across them and is left as it is. Memory: one float32 square matrix of its input channels per reader.

    Args:
        batches: images of shape `(N, C, H, W)`, alone or followed by labels.
    Raises:
        EagleEyeError: there are no images.
    """
    sums: dict[str, list[Tensor]] = {}
    counts: dict[str, int] = {}

    def collect(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            x = inputs[0].detach().float()
            rows = x.movedim(1, -1).flatten(0, -2) if isinstance(module, nn.Conv2d) else x.flatten(0, -2)
            total, products = rows.sum(0), rows.T @ rows
            if name in sums:
                sums[name][0] += total
                sums[name][1] += products
            else:
                sums[name] = [total, products]
            counts[name] = counts.get(name, 0) + len(rows)

        return hook

    model = unwrap_model(model)
    readers = find_readers(model, graph)
    modules = dict(model.named_modules())
    handles = [modules[name].register_forward_pre_hook(collect(name)) for name in readers]
    num_batches = 0
    try:
        with evaluation_mode(model), torch.no_grad():
            for batch in batches:
                run_model(model, images_of(batch))
                num_batches += 1
    finally:
        for handle in handles:
            handle.remove()
    if not num_batches:
        raise EagleEyeError("`batches` is empty; give at least one batch of calibration images")
    return {
        name: Moments(count=counts[name], total=total, products=products) for name, (total, products) in sums.items()
    }


def find_readers(model: nn.Module, graph: ChannelGraph) -> list[str]:
    """Dense convolutions and linear layers with prunable input channels."""
    prunable = {member.tensor for group in graph.prunable for member in group.members if member.dim == 1}
    return [
        name
        for name, module in model.named_modules()
        if f"{name}.weight" in prunable
        and (type(module) is nn.Linear or (isinstance(module, nn.Conv2d) and module.groups == 1))
        and module.weight.shape[1] == getattr(module, "in_channels", getattr(module, "in_features", None))
    ]


def compensate_readers(
    model: nn.Module,
    graph: ChannelGraph,
    keep: Mapping[str, np.ndarray | Tensor],
    moments: Mapping[str, Moments],
) -> dict[str, Tensor]:
    """Weights and biases, full-sized, whose kept columns make up for the removed ones; per tensor name.

    A constant is part of the fit where it can be stored, in the reader's own bias, or where a BatchNorm that follows
    takes it out again.
    """
    tensors = {name: tensor.detach() for name, tensor in named_tensors(unwrap_model(model))}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    places = kept_places(graph, {name: np.asarray(kept) for name, kept in keep.items()}, shapes)
    changed: dict[str, Tensor] = {}
    for name, moment in moments.items():
        weight, bias = tensors[f"{name}.weight"], tensors.get(f"{name}.bias")
        kept = places.get((f"{name}.weight", 1))
        if kept is None or len(kept) == weight.shape[1]:
            continue
        constant = takes_constant(graph, tensors, name)
        removed = np.setdiff1d(np.arange(weight.shape[1]), kept)
        kept_index, removed_index = (torch.from_numpy(i).to(weight.device) for i in (kept, removed))
        mixing, offset = _solve(moment, kept_index, removed_index, constant)
        gone = weight.index_select(1, removed_index)
        repaired = weight.clone()
        extra = torch.einsum("or...,kr->ok...", to_float64(gone), mixing).to(weight)
        repaired.index_add_(1, kept_index, extra)
        changed[f"{name}.weight"] = repaired
        if bias is not None and constant:
            taps = gone.flatten(2).sum(2) if gone.ndim > 2 else gone
            changed[f"{name}.bias"] = bias + (to_float64(taps) @ offset).to(bias)
    return changed


def _solve(moments: Moments, kept: Tensor, removed: Tensor, constant: bool) -> tuple[Tensor, Tensor]:
    """Mixing, shape `(kept, removed)`, and offset, shape `(removed,)`, in float64."""
    products, mean = central_moments(moments, constant)
    kept, removed = kept.to(mean.device), removed.to(mean.device)
    gram = products.index_select(0, kept).index_select(1, kept)
    ridge = RIDGE * gram.diagonal().mean().clamp_min(1e-12)
    gram = gram + ridge * torch.eye(len(kept), dtype=gram.dtype, device=gram.device)
    mixing = torch.linalg.solve(gram, products.index_select(0, kept).index_select(1, removed))
    offset = mean[removed] - mean[kept] @ mixing
    return mixing, offset if constant else torch.zeros_like(offset)


def central_moments(moments: Moments, constant: bool) -> tuple[Tensor, Tensor]:
    """Mean products of a reader's inputs, shape `(channels, channels)`, and their means, in float64.

    Args:
        constant: least squares have a free constant, which is least squares on what is left without the means.
    """
    products, mean = to_float64(moments.products) / moments.count, to_float64(moments.total) / moments.count
    return (products - torch.outer(mean, mean) if constant else products), mean


def takes_constant(graph: ChannelGraph, tensors: Mapping[str, Tensor], name: str) -> bool:
    """Whether a reader can store a constant, in its own bias, or a BatchNorm that follows takes it out again."""
    return f"{name}.bias" in tensors or f"{name}.weight" in _followed_by_norm(graph)


@functools.lru_cache(maxsize=4)
def _followed_by_norm(graph: ChannelGraph) -> set[str]:
    """Weights whose output channels pass a BatchNorm, as far as the groups tell."""
    found = set()
    for group in graph.groups:
        if any(member.tensor.endswith("running_mean") for member in group.members):
            found |= {member.tensor for member in group.members if member.dim == 0}
    return found
