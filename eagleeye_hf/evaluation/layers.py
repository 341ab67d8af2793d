"""What layers give while a network runs, and how far one network's are from another's."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eagleeye_hf.channels.cut import kept_places, named_tensors
from eagleeye_hf.channels.graph import ChannelGraph
from eagleeye_hf.channels.removal import is_removed
from eagleeye_hf.evaluation.batchnorm import batch_norms
from eagleeye_hf.networks.description import unwrap_model

EPSILON = 1e-6
"""Added to a variance that is divided by: a layer that gives the same everywhere has none."""


def matched_layers(
    full: nn.Module, graph: ChannelGraph, keep: Mapping[str, Any], removed_blocks: Collection[str] = ()
) -> dict[str, Tensor | None]:
    """Names of the BatchNorm layers that both have, and which of their channels in the full network the thin one has;
    None: all."""
    full = unwrap_model(full)
    shapes = {name: tuple(tensor.shape) for name, tensor in named_tensors(full)}
    places = kept_places(graph, {name: np.asarray(kept) for name, kept in keep.items()}, shapes)
    layers = {id(layer) for layer in batch_norms(full)}
    found: dict[str, Tensor | None] = {}
    for name, module in full.named_modules():
        if id(module) in layers and not is_removed(name, removed_blocks):
            kept = places.get((f"{name}.running_mean", 0))
            found[name] = None if kept is None else torch.from_numpy(kept)
    return found


class LayerOutputs:
    """The outputs of some modules in the last forward pass, by name."""

    def __init__(self, network: nn.Module, names: Iterable[str]) -> None:
        self.taken: dict[str, Tensor] = {}
        modules = dict(network.named_modules())
        self._handles = [modules[name].register_forward_hook(partial(self._take, name)) for name in names]

    def remove(self) -> None:
        """Look no longer."""
        for handle in self._handles:
            handle.remove()
        self.taken.clear()

    def _take(self, name: str, module: nn.Module, inputs: object, output: Tensor) -> None:
        self.taken[name] = output


def matching_loss(
    ours: Mapping[str, Tensor],
    theirs: Mapping[str, Tensor],
    kept: Mapping[str, Tensor | None],
    outputs: Tensor,
    wanted: Tensor,
) -> Tensor:
    """The mean over layers of the squared error over the full network's variance, and the same of the outputs.

    Maps of the full network that are larger, where it saw larger images, are averaged to the size of the thin one's.

    Args:
        ours: outputs of the thin network's layers; `theirs`: of the full one's, which have more channels.
        kept: which of these the thin network has, by number; or, where it has all and those that were removed are zero,
            whether each stays. None: all.
        outputs: of the whole thin network; `wanted`: of the full one.
    """
    errors = []
    for name, output in ours.items():
        goal, channels = theirs[name], kept[name]
        if channels is not None and channels.dtype == torch.bool:
            goal = goal * channels.view(-1, *[1] * (goal.ndim - 2))
        elif channels is not None:
            goal = _take_channels(goal, channels.to(goal.device))
        if goal.shape[2:] != output.shape[2:]:
            goal = F.adaptive_avg_pool2d(goal, (output.shape[2], output.shape[3]))
        errors.append(_relative_error(output, goal))
    layers = torch.stack(errors).mean() if errors else outputs.new_zeros(())
    return layers + _relative_error(outputs, wanted)


def _take_channels(maps: Tensor, channels: Tensor) -> Tensor:
    """Some channels, in the memory format that the maps have: `index_select` gives others, which is slow to compare."""
    if maps.ndim != 4 or not maps.is_contiguous(memory_format=torch.channels_last):
        return maps.index_select(1, channels)
    places = maps.permute(0, 2, 3, 1)
    return places.gather(3, channels.expand(*places.shape[:3], len(channels))).permute(0, 3, 1, 2)


def _relative_error(output: Tensor, goal: Tensor) -> Tensor:
    return _SquaredError.apply(output, goal) / (_variance(goal).mean() + EPSILON)


class _SquaredError(torch.autograd.Function):
    """The mean squared error in float32 or better, from maps of any precision without copies of them in float32: maps
    of a whole network are large, and copies took three quarters of a step of training on a CPU."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, goal: Tensor) -> Tensor:
        if torch.float16 in (output.dtype, goal.dtype):  # the gradient of one value would round to zero
            output, goal = output.float(), goal.float()
        difference = output - goal
        ctx.save_for_backward(difference)
        over = tuple(range(1, difference.ndim))  # one sum over all images would lose small terms
        norms = torch.linalg.vector_norm(difference, dim=over, dtype=_precise(difference))
        return norms.square().sum() / difference.numel()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (difference,) = ctx.saved_tensors
        return difference * (2 / difference.numel() * gradients[0]), None


@torch.no_grad()
def _variance(maps: Tensor) -> Tensor:
    """Of each channel over images and places, as BatchNorm computes it, which is the fastest way."""
    count = maps.numel() // maps.shape[1]
    mean, variance = maps.new_zeros(2, maps.shape[1], dtype=_precise(maps))
    if count > 1:
        F.batch_norm(maps, mean, variance, training=True, momentum=1.0)
    return variance * (1 - 1 / count)


def _precise(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
