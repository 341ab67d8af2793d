"""Candidates in the full network's shapes, so that a GPU's passes are recorded once and played again.

A candidate of new widths has layers of new shapes, and for each of them a GPU's library looks for a kernel, which takes
longer than the images do; launching hundreds of small kernels is slow, too. The full network with zeros in place of
what a candidate leaves out computes the same, and its passes are always the same kernels: CUDA graphs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from eagleeye_hf.channels.cut import clear_caches, kept_places, named_tensors
from eagleeye_hf.channels.graph import ChannelGraph
from eagleeye_hf.evaluation.batchnorm import batch_norms, check_statistics, unsynchronised
from eagleeye_hf.evaluation.format import Format
from eagleeye_hf.networks.running import channels_last, run_model

WARM_UP = 3
"""Passes before one is recorded, as PyTorch asks for."""


class RecordedNetwork(nn.Module):
    """The full network with a candidate's weights; a call gives its outputs, good until the next call.

    On a CPU passes are run, not recorded.
    """

    def __init__(self, model: nn.Module, graph: ChannelGraph, format: Format) -> None:
        super().__init__()
        self.graph, self.format = graph, format
        network = copy.deepcopy(model).float().eval().requires_grad_(False)
        self.network = channels_last(network) if format.channels_last else network
        self.full = {name: tensor.clone() for name, tensor in named_tensors(self.network)}
        self.shapes = {name: tuple(tensor.shape) for name, tensor in self.full.items()}
        self.layers = batch_norms(self.network)
        self.filled: set[str] = set()
        """Parameters that are not the full network's."""
        self.masks: dict[tuple[str, int], Tensor] = {}
        """Ones where channels stay, per (tensor, dimension)."""
        self.ends: list[str] = []
        """Parameters that are zero, so that blocks add nothing."""
        self.passes: dict[tuple[torch.Size, torch.dtype, float | None, bool], Pass] = {}
        self.moments = _Moments(self.layers)
        self.recorder = Recorder(self.moments.sums.device)

    def fill(
        self,
        keep: Mapping[str, np.ndarray],
        changed: Mapping[str, Tensor] | None = None,
        removed_blocks: Collection[str] = (),
    ) -> RecordedNetwork:
        """Take the weights of the candidate with the channels in `keep`, and the full network's statistics; arguments
        as in `RefilledModel.fill`. The branches of blocks that are gone add zero."""
        self.ends = [name for block in self.graph.blocks if block.name in removed_blocks for name in block.zeroed]
        changed = {**(changed or {}), **{name: torch.zeros_like(self.full[name]) for name in self.ends}}
        parameters = dict(self.network.named_parameters())
        self.masks = self._masks(keep)
        touched = {name for name, _ in self.masks} | set(changed)
        with torch.no_grad():
            for name in touched | self.filled:
                if name in parameters:
                    parameters[name].copy_(changed.get(name, self.full[name]))
            for tensor, mask in self._masked(parameters):
                tensor.mul_(mask)
            for name, buffer in self.network.named_buffers():
                buffer.copy_(self.full[name])
        self.filled = touched
        return self

    @contextmanager
    def trained(self) -> Iterator[Callable[[], None]]:
        """Within it weights can be trained, until the next `fill`; gives what is called once there are gradients: what
        was removed stays so."""
        parameters = dict(self.network.named_parameters())
        masked = self._masked(parameters)
        self.filled = set(parameters)

        def mask() -> None:
            with torch.no_grad():
                for tensor, kept in masked:
                    if tensor.grad is not None:
                        tensor.grad.mul_(kept)
                for name in self.ends:
                    if name in parameters:
                        parameters[name].grad = None

        self.network.requires_grad_(True)
        try:
            yield mask
        finally:
            self.network.zero_grad()
            self.network.requires_grad_(False)

    def channels_of(self, layers: Iterable[str]) -> dict[str, Tensor | None]:
        """Per BatchNorm layer, by name, whether each channel stays; None: all do."""
        masks = {name: self.masks.get((f"{name}.running_mean", 0)) for name in layers}
        return {name: None if mask is None else mask.bool() for name, mask in masks.items()}

    def _masked(self, parameters: Mapping[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Parameters, and what each is multiplied by."""
        found = []
        for (name, dim), mask in self.masks.items():
            if name in parameters:
                shape = [1] * len(self.shapes[name])
                shape[dim] = -1
                found.append((parameters[name], mask.view(shape)))
        return found

    def _masks(self, keep: Mapping[str, np.ndarray]) -> dict[tuple[str, int], Tensor]:
        """Ones where channels stay, per (tensor, dimension); all of them moved to the device at once."""
        places = kept_places(self.graph, keep, self.shapes)
        sizes = [self.shapes[name][dim] for name, dim in places]
        flat, start = np.zeros(sum(sizes), dtype=np.float32), 0
        for kept, size in zip(places.values(), sizes, strict=True):
            flat[start + kept] = 1
            start += size
        device = next(iter(self.full.values())).device
        return dict(zip(places, torch.from_numpy(flat).to(device).split(sizes), strict=True))

    def recalibrate(self, batches: Iterable[Tensor], momentum: float | None) -> None:
        """What `recalibrate_bn` does.

        Raises:
            NotFiniteError: statistics are not finite numbers.
        """
        self.moments.sums.zero_()
        for images in batches:
            self._pass(images, training=True, momentum=momentum).play(images)
        if momentum is None:
            self.moments.write()
        check_statistics(self.network, self.layers)

    def forward(self, images: Tensor) -> Tensor:
        return self._pass(images, training=False, momentum=None).play(images)

    def _pass(self, images: Tensor, training: bool, momentum: float | None) -> Pass:
        key = images.shape, images.dtype, momentum, training
        if key not in self.passes:
            device = next(iter(self.full.values())).device
            with torch.inference_mode(False), torch.no_grad():
                before = [(tensor, tensor.clone()) for tensor in (self.moments.sums, *self.network.buffers())]
                there = images.to(device, copy=True)
                run = self._train(momentum, there) if training else self._run
                self.passes[key] = Pass(run, there, self.recorder)
                for tensor, value in before:  # as it was before warming up
                    tensor.copy_(value)
        return self.passes[key]

    def _run(self, images: Tensor) -> Tensor:
        autocast = torch.autocast(images.device.type, torch.bfloat16, enabled=self.format.bfloat16, cache_enabled=False)
        clear_caches(self.network)  # of the weights before
        with autocast:
            return run_model(self.network, images)

    def _train(self, momentum: float | None, example: Tensor) -> Callable[[Tensor], Tensor]:
        """A pass in which BatchNorm takes the batch's statistics and keeps them, or their moving average."""
        counts = self.moments.count(partial(self._run, example))

        def run(images: Tensor) -> Tensor:
            before = [(layer, layer.momentum) for layer in self.layers]
            try:
                for layer in self.layers:
                    layer.training = True  # not `train()`: some layers hold an activation or dropout
                    layer.momentum = 1.0 if momentum is None else 1 - momentum
                with unsynchronised(self.layers):
                    outputs = self._run(images)
            finally:
                for layer, value in before:
                    layer.eval()
                    layer.momentum = value
            if momentum is None:
                self.moments.add(counts)
            return outputs

        return run


class Recorder:
    """Records passes of one network, none of which needs what another leaves but its outputs: they share memory, so
    that another shape of images takes no more than what is larger.

    On other devices than a GPU it records nothing.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None

    def record(self, run: Callable[[], Tensor]) -> tuple[torch.cuda.CUDAGraph, Tensor] | None:
        """The pass, to be played again, and the tensor in which its outputs are then."""
        if self.stream is None:
            return None
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            for _ in range(WARM_UP):
                run()
        current.wait_stream(self.stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):
            outputs = run()
        return graph, outputs


class Pass:
    """One forward pass on images of one shape: recorded on a GPU, run anew elsewhere."""

    def __init__(self, run: Callable[[Tensor], Tensor], images: Tensor, recorder: Recorder) -> None:
        self.run, self.images = run, images
        self.recorded = recorder.record(partial(run, images))

    def play(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            self.images.copy_(images)
            if self.recorded is None:
                return self.run(self.images)
            graph, outputs = self.recorded
            graph.replay()
        return outputs


class _Moments:
    """Mean and variance of every layer's inputs over several batches, in float64."""

    def __init__(self, layers: Sequence[_BatchNorm]) -> None:
        self.layers = layers
        self.means = [cast(Tensor, layer.running_mean) for layer in layers]
        self.variances = [cast(Tensor, layer.running_var) for layer in layers]
        self.sizes = [len(mean) for mean in self.means]
        self.sums = self.means[0].new_zeros(3, sum(self.sizes), dtype=torch.float64)
        """Of values, of their squares, and how many there were; of each layer's each channel."""

    def count(self, run: Callable[[], object]) -> Tensor:
        """Values per channel that each layer sees in a pass."""
        counts = dict.fromkeys(self.layers, 0)

        def count(layer: _BatchNorm, inputs: tuple[Tensor, ...]) -> None:
            counts[layer] = inputs[0].numel() // inputs[0].shape[1]

        handles = [layer.register_forward_pre_hook(count) for layer in self.layers]
        try:
            run()
        finally:
            for handle in handles:
                handle.remove()
        sizes = torch.tensor(self.sizes)
        each = torch.tensor([counts[layer] for layer in self.layers], dtype=torch.float64)
        return each.repeat_interleave(sizes).to(self.sums.device)

    def add(self, count: Tensor) -> None:
        """The statistics of one batch, which the layers hold."""
        mean, variance = torch.cat(self.means).double(), torch.cat(self.variances).double()
        self.sums[0] += count * mean
        self.sums[1] += (count - 1).clamp(min=0) * variance + count * mean.square()
        self.sums[2] += count

    def write(self) -> None:
        """Into the layers; those that were not used keep theirs."""
        total, squares, count = self.sums
        mean = total / count
        variance = ((squares - total * mean) / (count - 1)).clamp(min=0)
        for tensors, found in ((self.means, mean), (self.variances, variance)):
            for tensor, value, number in zip(tensors, found.split(self.sizes), count.split(self.sizes), strict=True):
                tensor.copy_(torch.where(number > 0, value, tensor.double()))
