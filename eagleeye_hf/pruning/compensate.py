"""Least-squares repair: what a layer read from removed channels is told from those that stay.

`W_keep += W_removed @ A`, where `A` minimises `|X_removed - X_keep A|^2` over the calibration images' pixels, with
a column of ones and a small ridge. It needs only first and second moments of each reader's inputs, collected once
from the full network.
"""

from __future__ import annotations

import copy
import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from timm.layers import Linear as TimmLinear
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from eagleeye_hf.channels.cut import kept_places, named_tensors
from eagleeye_hf.channels.graph import ChannelGraph
from eagleeye_hf.errors import EagleEyeError
from eagleeye_hf.networks.description import unwrap_model
from eagleeye_hf.networks.running import AnyBatch, evaluation_mode, images_of, run_model, to_float64
from eagleeye_hf.networks.threads import one_thread
from eagleeye_hf.telling import progress_bar

RIDGE = 1e-4
"""Added to the diagonal of the kept channels' moments, as a fraction of the mean one of all inputs (of the group)."""
PROBED = 4
"""Images on which it is seen where a constant goes."""
ROUNDING = 1e-8
"""Relative change of the outputs, in float64, below which nothing has reached them."""


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Of the inputs of one reader, over all pixels of all images; `groups` are those of a convolution, 1 otherwise."""

    mean: Tensor
    """Shape `(groups, channels)`."""
    covariance: Tensor
    """Shape `(groups, channels, channels)`. Mean products would round it away where means are a hundred times as
    large."""
    constant: bool
    """Whether a constant of the fit has a place: in the reader's own bias, or a BatchNorm takes it out again."""


class ReaderMoments:
    """Those of a network's readers, collected when they are first asked for; good for several threads.

    Args:
        batches: as in `collect_moments`.
    """

    def __init__(self, model: nn.Module, graph: ChannelGraph, batches: Iterable[AnyBatch]) -> None:
        self._collect = partial(collect_moments, model, graph, batches)
        self._lock = threading.Lock()
        self._found: dict[str, Moments] | None = None

    def get(self) -> dict[str, Moments]:
        """Per name of a reader."""
        with self._lock, one_thread():
            if self._found is None:
                self._found = self._collect()
        return self._found


def collect_moments(model: nn.Module, graph: ChannelGraph, batches: Iterable[AnyBatch]) -> dict[str, Moments]:
    """One forward pass of the full network over the calibration images; per name of a reader.

    Readers are convolutions and linear layers whose inputs can be pruned. Memory: one float32 square matrix of its
    input channels per reader, of each group's where it is a convolution in groups.

    Args:
        batches: images of shape `(N, C, H, W)`, alone or followed by labels.
    Raises:
        EagleEyeError: there are no images.
    """
    sums: dict[str, list[Tensor]] = {}
    counts: dict[str, int] = {}

    def collect(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Any, ...], named: Mapping[str, Any]) -> None:
            x, groups = (*inputs, *named.values())[0].detach().float(), 1
            if isinstance(module, nn.Conv2d):
                x, groups = x.movedim(-3, -1), module.groups
            rows = x.flatten(0, -2).unflatten(1, (groups, -1)).movedim(1, 0)
            if name not in sums:
                near = rows.mean(1, keepdim=True)
                sums[name] = [near, torch.zeros_like(near), rows.new_zeros(len(rows), rows.shape[2], rows.shape[2])]
            near, total, products = sums[name]
            rows = rows - near
            total += rows.sum(1, keepdim=True)
            products += rows.mT @ rows
            counts[name] = counts.get(name, 0) + rows.shape[1]

        return hook

    model = copy.deepcopy(unwrap_model(model))  # other threads may run or copy the given one meanwhile
    readers = find_readers(model, graph)
    modules = dict(model.named_modules())
    handles = [modules[name].register_forward_pre_hook(collect(name), with_kwargs=True) for name in readers]
    num_batches, without_bias = 0, [name for name in readers if modules[name].bias is None]
    try:
        with evaluation_mode(model), torch.no_grad():
            for batch in progress_bar(batches, "reading what layers are given", unit=" batches", delay=2, leave=False):
                if not num_batches:
                    first = images_of(batch)[:PROBED]
                run_model(model, images_of(batch))
                num_batches += 1
    finally:
        for handle in handles:
            handle.remove()
    if not num_batches:
        raise EagleEyeError("`batches` is empty; give at least one batch of calibration images")
    kept = keep_constants(model, without_bias, first)
    found = {}
    for name, (near, total, products) in sums.items():
        apart = total / counts[name]
        covariance = products / counts[name] - apart.mT @ apart
        found[name] = Moments(mean=(near + apart).squeeze(1), covariance=covariance, constant=name not in kept)
    return found


def keep_constants(model: nn.Module, names: Sequence[str], images: Tensor) -> set[str]:
    """The layers for which a constant added to their output reaches the network's, though every BatchNorm takes the
    statistics of the batch: gates (SE, SK), and convolutions with an activation before the BatchNorm.

    A network that can't run so, on a single image of one pixel, say, is taken to have none.
    """
    if not names:
        return set()
    probe, images = copy.deepcopy(model).cpu().double().eval(), images.cpu().double()
    modules = dict(probe.named_modules())
    for layer in probe.modules():  # a synchronised one would wait for other processes
        if isinstance(layer, _BatchNorm) and not isinstance(layer, nn.SyncBatchNorm):
            layer.training = True
    if len(images) == 1:
        images = torch.cat([images, images.flip(-1)])

    def run(shifted: Sequence[str]) -> Tensor:
        handles = [modules[name].register_forward_hook(_shift) for name in shifted]
        try:
            return run_model(probe, images)
        finally:
            for handle in handles:
                handle.remove()

    def find(some: Sequence[str]) -> set[str]:
        moved = (run(some) - expected).norm() / expected.norm().clamp_min(1e-12)
        if float(moved) < ROUNDING:
            return set()
        if len(some) == 1:
            return set(some)
        return find(some[: len(some) // 2]) | find(some[len(some) // 2 :])

    with torch.no_grad():
        try:
            expected = run(())
        except ValueError:  # a BatchNorm of one value per channel
            return set()
        except (RuntimeError, TypeError):  # code that insists on a type, or outputs that are no tensor
            return set(names)  # a fit without a constant holds in any case
        return find(list(names))


def _shift(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
    """Add another constant to each channel."""
    axis = 1 if isinstance(module, nn.Conv2d) else output.ndim - 1
    shape = [-1 if place == axis else 1 for place in range(output.ndim)]
    constants = torch.linspace(0.5, 1.5, output.shape[axis], device=output.device).view(shape)
    return output + output.std() * constants


def find_readers(model: nn.Module, graph: ChannelGraph) -> list[str]:
    """Convolutions and linear layers with prunable input channels and a weight that no other layer has, too."""
    prunable = {member.tensor for group in graph.prunable for member in group.members if member.dim == 1}
    layers = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d) or type(module) in (nn.Linear, TimmLinear)
    ]
    owners = Counter(id(module.weight) for _, module in layers)
    return [name for name, module in layers if f"{name}.weight" in prunable and owners[id(module.weight)] == 1]


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
        removed = np.setdiff1d(np.arange(weight.shape[1]), kept)
        kept_index, removed_index = (torch.from_numpy(i).to(weight.device) for i in (kept, removed))
        mixing, offset = _solve(moment, kept_index, removed_index)
        gone = weight.index_select(1, removed_index)
        repaired = weight.clone()
        by_group = to_float64(gone).unflatten(0, (len(mixing), -1))
        extra = torch.einsum("gor...,gkr->gok...", by_group, mixing).flatten(0, 1)
        repaired.index_add_(1, kept_index, extra.to(weight))
        changed[f"{name}.weight"] = repaired
        if bias is not None:
            taps = by_group.flatten(3).sum(3) if gone.ndim > 2 else by_group
            changed[f"{name}.bias"] = bias + (taps @ offset[:, :, None]).flatten().to(bias)
    return changed


def _solve(moments: Moments, kept: Tensor, removed: Tensor) -> tuple[Tensor, Tensor]:
    """Mixing, shape `(groups, kept, removed)`, and offset, shape `(groups, removed)`, in float64."""
    products, mean = central_moments(moments)
    kept, removed = kept.to(mean.device), removed.to(mean.device)
    rows = products.index_select(1, kept)
    gram = rows.index_select(2, kept)
    gram.diagonal(dim1=1, dim2=2).add_(find_ridge(products))
    mixing = torch.linalg.solve(gram, rows.index_select(2, removed))
    return mixing, mean[:, removed] - (mean[:, None, kept] @ mixing).squeeze(1)


def find_ridge(products: Tensor) -> Tensor:
    """What is added to the diagonal of moments; shape `(groups, 1)`."""
    return RIDGE * products.diagonal(dim1=1, dim2=2).mean(1, keepdim=True).clamp_min(1e-12)


def central_moments(moments: Moments) -> tuple[Tensor, Tensor]:
    """Mean products of a reader's inputs, shape `(groups, channels, channels)`, and their means, in float64; of what is
    left without the means where least squares have a free constant, which is the same."""
    covariance, mean = to_float64(moments.covariance), to_float64(moments.mean)
    return (covariance if moments.constant else covariance + mean[:, :, None] * mean[:, None, :]), mean
