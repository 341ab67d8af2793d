"""A model's modules, built once and filled with the tensors of one candidate after another."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from eagleeye_hf.channels.cut import attribute_sizes, clear_caches, cut_tensor, kept_places, named_tensors
from eagleeye_hf.channels.graph import ChannelGraph
from eagleeye_hf.channels.removal import is_removed, remove_blocks, restore_blocks
from eagleeye_hf.channels.resizing import resize_modules


class RefilledModel:
    """Gives what `slice_model` gives, without copying the full model each time.

    The modules are one copy of the model's; tensors that no candidate cuts are the model's own. So a candidate lives
    until the next `fill`, and its weights are not to be trained; its BatchNorm statistics are its own. Half precision
    becomes float32, in which statistics and scores are computed.

    Args:
        channels_last: weights of convolutions get this memory format.
    """

    def __init__(self, model: nn.Module, graph: ChannelGraph, channels_last: bool = False) -> None:
        self.graph, self.channels_last = graph, channels_last
        self._full = {name: _at_least_float32(tensor.detach()) for name, tensor in named_tensors(model)}
        self._shapes = {name: tuple(tensor.shape) for name, tensor in self._full.items()}
        names = {id(tensor): name for name, tensor in named_tensors(model)}
        self._model = copy.deepcopy(model, {id(tensor): tensor for _, tensor in named_tensors(model)})
        self._slots: dict[str, list[tuple[dict[str, Any], str, bool]]] = {}
        for module in self._model.modules():
            for slots in (module._parameters, module._buffers):
                for key, tensor in slots.items():
                    if tensor is not None:
                        self._slots.setdefault(names[id(tensor)], []).append(
                            (slots, key, isinstance(tensor, nn.Parameter))
                        )
        self._removed: dict[str, nn.Module] = {}
        """What the candidate that is filled in lacks."""
        self._buffers = {name for name, _ in self._model.named_buffers()}

    def fill(
        self,
        keep: Mapping[str, np.ndarray],
        changed: Mapping[str, Tensor] | None = None,
        removed_blocks: Collection[str] = (),
    ) -> nn.Module:
        """The model with only the channels in `keep`, in eval mode; it replaces the one given before.

        Args:
            changed: full tensors that stand in for the model's own, by name.
        """
        changed = changed or {}
        restore_blocks(self._model, self._removed)
        self._removed = {}
        places = kept_places(self.graph, keep, self._shapes)
        cuts: dict[str, list[tuple[int, np.ndarray]]] = {}
        for (name, dim), kept in places.items():
            cuts.setdefault(name, []).append((dim, kept))
        for name, slots in self._slots.items():
            if is_removed(name, removed_blocks):
                continue
            if name in cuts or name in changed:
                tensor = self._format(cut_tensor(changed.get(name, self._full[name]), cuts.get(name, [])))
            else:
                tensor = self._full[name].clone() if name in self._buffers else self._format(self._full[name])
            for holder, key, is_parameter in slots:
                holder[key] = nn.Parameter(tensor, requires_grad=False) if is_parameter else tensor
        clear_caches(self._model)
        self._removed = remove_blocks(self._model, removed_blocks)
        resize_modules(self._model, attribute_sizes(self.graph, keep, removed_blocks))
        return self._model.eval()

    def _format(self, tensor: Tensor) -> Tensor:
        if self.channels_last and tensor.ndim == 4:
            return tensor.contiguous(memory_format=torch.channels_last)
        return tensor


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
