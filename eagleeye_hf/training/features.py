"""Feature distillation: every layer of the pruned network is to read what it reads in the full one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

EMPTY = 1e-3
"""A mean square that is small beside what BatchNorm gives: dead features have no relative error."""


class FeatureDistillation:
    """The error of the layers' inputs, relative to those of the full network at the channels that stayed.

    That is what least-squares compensation minimises layer by layer, as a loss (hints, Romero et al. 2015, without
    their regressors: a pruned network's channels have counterparts). It watches both networks: run the pruned one, then
    the full one on the same images, then ask `loss`.

    Args:
        kept_inputs: per name of a layer, the channels of its input that stayed, as `kept_inputs` gives them.
    """

    def __init__(self, network: nn.Module, teacher: nn.Module, kept_inputs: Mapping[str, Tensor]) -> None:
        self._read: dict[str, list[Tensor]] = {name: [] for name in kept_inputs}
        self._errors: list[Tensor] = []
        device = next(iter(teacher.parameters())).device
        for name, channels in kept_inputs.items():
            network.get_submodule(name).register_forward_pre_hook(self._remember(name))
            teacher.get_submodule(name).register_forward_pre_hook(self._compare(name, channels.to(device)))

    def _remember(self, name: str) -> Any:
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self._read[name].append(inputs[0])

        return hook

    def _compare(self, name: str, channels: Tensor) -> Any:
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            full = inputs[0].index_select(-1 if isinstance(layer, nn.Linear) else 1, channels).float()
            with torch.enable_grad():
                error = _energy(self._read[name].pop(0).float() - full)
                self._errors.append((error / _energy(full).clamp_min(EMPTY)).mean())

        return hook

    def loss(self) -> Tensor:
        """The mean over images and layers, since the last time; 1 where the pruned network gives zeros."""
        total = torch.stack(self._errors).mean()
        self._errors.clear()
        return total


def _energy(maps: Tensor) -> Tensor:
    """Mean square per image, the fastest way whatever the memory format."""
    return torch.linalg.vector_norm(maps, dim=tuple(range(1, maps.ndim))).square() / maps[0].numel()
