"""What layers give while a network runs, and how far one network's are from another's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPSILON = 1e-6
"""Added to a variance that is divided by: a layer that gives the same everywhere has none."""


class LayerOutputs:
    """The outputs of some modules in the last forward pass, by name."""

    def __init__(self, network: nn.Module, names: Iterable[str]) -> None:
        self.taken: dict[str, Tensor] = {}
        modules = dict(network.named_modules())
        for name in names:
            modules[name].register_forward_hook(partial(self._take, name))

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
        kept: which of these the thin network has; None: all.
        outputs: of the whole thin network; `wanted`: of the full one.
    """
    errors = []
    for name, output in ours.items():
        goal, channels = theirs[name], kept[name]
        if channels is not None:
            goal = goal.index_select(1, channels.to(goal.device))
        if goal.shape[2:] != output.shape[2:]:
            goal = F.adaptive_avg_pool2d(goal, output.shape[2:])
        errors.append(_relative_error(output, goal))
    layers = torch.stack(errors).mean() if errors else outputs.new_zeros(())
    return layers + _relative_error(outputs, wanted)


def _relative_error(output: Tensor, goal: Tensor) -> Tensor:
    output, goal = output.float(), goal.float()
    others = [dim for dim in range(goal.ndim) if dim != 1]
    return F.mse_loss(output, goal) / (goal.var(others, correction=0).mean() + EPSILON)
