"""Thin networks cut out of one exported graph, so that profiling many needs one export. Needs onnx."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from torch import Tensor, nn

from eagleeye_hf.channels.cut import kept_places, kept_size, named_tensors
from eagleeye_hf.channels.graph import ChannelGraph
from eagleeye_hf.channels.removal import is_removed
from eagleeye_hf.channels.slicing import slice_model
from eagleeye_hf.networks.running import device_of, dtype_of
from eagleeye_hf.runtimes.onnx_blocks import leave_out
from eagleeye_hf.runtimes.onnx_files import export_proto
from eagleeye_hf.runtimes.onnx_integers import Entry, Use, carry_over, find_uses, match_integers
from eagleeye_hf.runtimes.quantize import quantize_proto
from eagleeye_hf.runtimes.runtime import Loader, Program, Weights

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_WRITTEN: weakref.WeakKeyDictionary[nn.Module, dict[tuple, Any]] = weakref.WeakKeyDictionary()
"""What was exported of a network for as long as it lives: runtimes share it, and exporting takes seconds."""
QUANTIZED = "_quantized"
"""What ONNX Runtime's quantisation appends to the names of weights."""
PROBES, DRAWS = 2, 16
"""Thin networks that are exported to find numbers of channels, and how many such pairs are drawn for a good one."""


def write_proto(model: nn.Module, images: Tensor, precision: str) -> Any:
    """A network as an `onnx.ModelProto` for images of this shape, for timing: quantised by random ones' ranges."""
    shapes = tuple(tuple(tensor.shape) for _, tensor in named_tensors(model))
    key = (tuple(images.shape), dtype_of(model), precision, shapes)
    written = _WRITTEN.setdefault(model, {})
    if key not in written:
        inputs = images.to(device_of(model), dtype_of(model))
        proto = export_proto(model, inputs)
        written[key] = quantize_proto(proto, [inputs.cpu().float().numpy()]) if precision == "int8" else proto
    return written[key]


def slice_proto(model: nn.Module, graph: ChannelGraph, images: Tensor, precision: str) -> SlicedGraph:
    """What cuts thin networks out of the exported one."""
    key = (tuple(images.shape), dtype_of(model), precision, graph)
    written = _WRITTEN.setdefault(model, {})
    if key not in written:
        like = next(
            (other for other in written.values() if isinstance(other, SlicedGraph) and other.graph == graph), None
        )
        written[key] = SlicedGraph(lambda network: write_proto(network, images, precision), model, graph, like)
    return written[key]


def load_slices(
    model: nn.Module,
    graph: ChannelGraph,
    images: Tensor,
    precision: str,
    open_program: Callable[[bytes, Weights], Program],
) -> Loader:
    """What loads thin networks cut out of the exported one, or exported each where a runtime refuses them.

    Args:
        open_program: makes a program of a serialised graph, and of the names and shapes of its weights.
    """
    sliced = slice_proto(model, graph, images, precision)

    def load(keep: Mapping[str, np.ndarray], removed_blocks: Collection[str] = ()) -> Program:
        weights = [pair for pair in sliced.thin_weights(keep) if not is_removed(pair[0], removed_blocks)]
        try:
            program = open_program(sliced.take(keep, removed_blocks), weights)
            program.run()
            return program
        except Exception:  # a graph that keeps channel numbers elsewhere, too; the runtimes' errors are many
            pass
        proto = write_proto(slice_model(model, graph, keep, removed_blocks).eval(), images, precision)
        return open_program(proto.SerializeToString(), weights)

    return load


class SlicedGraph:
    """An exported network whose initialisers can lose the channels that a thin network lacks.

    Integers of the graph that are numbers of channels (the sizes of a split, the target of a reshape) are found by
    comparing it with two thin networks that are exported, too. What can't be found so makes `take` wrong, and the
    runtime refuses it.

    Args:
        export: writes a network as an `onnx.ModelProto`, quantised or not.
        like: of the same network for other images, whose integers save two exports where they are as many.
    """

    def __init__(
        self, export: Callable[[nn.Module], Any], model: nn.Module, graph: ChannelGraph, like: SlicedGraph | None = None
    ) -> None:
        proto = export(model)
        self.graph = graph
        self._shapes = {name: tuple(tensor.shape) for name, tensor in named_tensors(model)}
        self._arrays = {entry.name: numpy_helper.to_array(entry) for entry in proto.graph.initializer}
        self._transposed = self._find_transposed(model)
        self._producers = {output: node for node in proto.graph.node for output in node.output}
        self._bare = onnx.ModelProto()
        self._bare.CopyFrom(proto)
        for field in (self._bare.graph.initializer, self._bare.graph.value_info):
            del field[:]
        self.weights = [
            (weight, self._shapes[weight])
            for node in proto.graph.node
            if node.op_type in WEIGHTED and (weight := self._weight_of(node)) is not None
        ]
        """Names and shapes of the weights, in the order of the graph."""
        self._uses = find_uses(self._bare.graph, self._arrays)
        known = carry_over(self._uses, like._uses, like._integers) if like else None
        self._integers: dict[Use, list[Entry]] = self._find_integers(export, model) if known is None else known
        """Of each input of integers that changes with widths; places are those in `_sizes`."""

    def thin_weights(self, keep: Mapping[str, np.ndarray]) -> list[tuple[str, tuple[int, ...]]]:
        """`weights` of the thin network."""
        kept = kept_places(self.graph, keep, self._shapes)
        return [
            (name, tuple(len(kept[name, dim]) if (name, dim) in kept else size for dim, size in enumerate(shape)))
            for name, shape in self.weights
        ]

    def take(self, keep: Mapping[str, np.ndarray], removed_blocks: Collection[str] = ()) -> bytes:
        """The thin network, as a serialised graph.

        Raises:
            ValueError: a block can't be told from the rest.
        """
        kept = kept_places(self.graph, keep, self._shapes)
        cuts: dict[str, dict[int, np.ndarray]] = {}
        for (tensor, dim), places in kept.items():
            cuts.setdefault(tensor, {})[dim] = places
        thin = onnx.ModelProto()
        thin.CopyFrom(self._bare)
        sizes = self._sizes(keep, kept) if self._integers else []
        changed: dict[str, np.ndarray] = {}
        for (number, place), entries in self._integers.items():  # nodes of unlike widths may share an initialiser
            inputs = thin.graph.node[number].input
            inputs[place] = f"{inputs[place]}_{number}"
            values = [value if size is None else size[1] * sizes[size[0]] for value, size in entries]
            changed[inputs[place]] = np.array(values, dtype=np.int64)
        leave_out(thin.graph, removed_blocks)
        for node in thin.graph.node:
            weight = self._weight_of(node) if node.op_type in WEIGHTED else None
            if weight is None:
                continue
            if is_removed(weight, removed_blocks):
                raise ValueError(f"{weight} is still there")
            for role, source in enumerate(node.input[1:3], 1):
                changed |= self._cut_operand(source, weight, cuts.get(weight, {}), is_bias=role == 2)
            self._set_groups(node, weight, keep)
        read = {name for node in thin.graph.node for name in node.input}
        for name in dict.fromkeys([*self._arrays, *changed]):
            if name in read:
                array = changed[name] if name in changed else _cut(self._arrays[name], cuts.get(name, {}))
                thin.graph.initializer.append(numpy_helper.from_array(array, name))
        return thin.SerializeToString()

    def _cut_operand(
        self, source: str, weight: str, cut: Mapping[int, np.ndarray], is_bias: bool
    ) -> dict[str, np.ndarray]:
        """A weight or bias, and the scales of its channels where it is quantised."""
        producer = self._producers.get(source)
        names = [source] if producer is None else list(producer.input)
        found = {}
        for name in names:
            array = self._arrays.get(name)
            if array is None:
                continue
            if array.ndim == len(self._shapes[weight]) and not is_bias and array.ndim >= 2:
                transposed = name in self._transposed
                found[name] = _cut(array, {1 - dim: places for dim, places in cut.items()} if transposed else cut)
            elif array.shape == self._shapes[weight][:1] and 0 in cut:
                found[name] = array[cut[0]]
        return found

    def _weight_of(self, node: Any) -> str | None:
        """The network's tensor that a node multiplies with."""
        producer = self._producers.get(node.input[1])
        name = node.input[1] if producer is None else producer.input[0]
        name = name.removesuffix(QUANTIZED)
        name = self._transposed.get(name, name)
        return name if name in self._shapes and len(self._shapes[name]) >= 2 else None

    def _set_groups(self, node: Any, weight: str, keep: Mapping[str, np.ndarray]) -> None:
        """Depthwise and grouped convolutions have as many groups as are left."""
        module = weight.rpartition(".")[0]
        for attribute in self.graph.attributes:
            if attribute.module == module and attribute.path == ("groups",):
                for entry in node.attribute:
                    if entry.name == "group":
                        entry.i = kept_size(attribute, self.graph, keep)

    def _find_integers(self, export: Callable[[nn.Module], Any], model: nn.Module) -> dict[Use, list[Entry]]:
        """By thin networks that are exported, where any integers are there."""
        if not self._uses:
            return {}
        probes, sizes = self._draw_probes()
        thin = [export(slice_model(model, self.graph, keep).eval()).graph for keep in probes]
        return match_integers(self._bare.graph, self._uses, thin, sizes)

    def _draw_probes(self) -> tuple[list[dict[str, np.ndarray]], list[list[int]]]:
        """Thin networks, and the numbers of channels of the full one and of them: of many draws those that tell most
        apart."""
        random, drawn, full = np.random.default_rng(0), [], self._sizes({}, {})
        for _ in range(DRAWS):
            probes = [_draw_keep(self.graph, random) for _ in range(PROBES)]
            sizes = [full, *(self._sizes(keep, kept_places(self.graph, keep, self._shapes)) for keep in probes)]
            drawn.append((len(set(zip(*sizes, strict=True))), probes, sizes))
        _, probes, sizes = max(drawn, key=lambda one: one[0])
        return probes, sizes

    def _sizes(self, keep: Mapping[str, np.ndarray], kept: Mapping[tuple[str, int], np.ndarray]) -> list[int]:
        """Every number of channels that a graph may hold: what the model's Python counts, then tensors' dimensions."""
        counted = [kept_size(attribute, self.graph, keep) for attribute in self.graph.attributes]
        places = dict.fromkeys((m.tensor, m.dim) for group in self.graph.groups for m in group.members)
        return counted + [len(kept[key]) if key in kept else self._shapes[key[0]][key[1]] for key in places]

    def _find_transposed(self, model: nn.Module) -> dict[str, str]:
        """Initialisers that hold a weight of two dimensions the other way round, under another name."""
        others = {name: a for name, a in self._arrays.items() if a.ndim == 2 and name not in self._shapes}
        found = {}
        for name, tensor in model.named_parameters():
            if tensor.ndim == 2:
                for other, array in others.items():
                    if array.shape == tuple(tensor.shape)[::-1] and np.array_equal(array.T, tensor.detach().cpu()):
                        found[other] = name
        return found


def _draw_keep(graph: ChannelGraph, random: np.random.Generator) -> dict[str, np.ndarray]:
    """Random channels of every group that can be pruned."""
    keep = {}
    for group in graph.prunable:
        units = random.permutation(len(group.units))[: max(1, int(len(group.units) * random.uniform(0.4, 0.95)))]
        keep[group.name] = np.sort(group.units[units].ravel())
    return keep


def _cut(array: np.ndarray, cut: Mapping[int, np.ndarray]) -> np.ndarray:
    for dim, places in cut.items():
        if dim < array.ndim:
            array = np.take(array, places, axis=dim)
    return array
