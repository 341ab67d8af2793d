"""What is known of a tensor's values without computing them: where it becomes zero, what it then equals, its range."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

NOTHING: Mapping[int, frozenset[str]] = {}
EVERYWHERE = (-math.inf, math.inf)
KEEPS_ALL = frozenset(
    ["clone", "detach", "contiguous", "_to_copy", "alias", "lift_fresh", "dropout", "view", "_unsafe_view", "reshape"]
)
"""The same values in the same order."""
_MOVES = "permute transpose t expand slice select split split_with_sizes chunk unsqueeze squeeze unbind roll flip"
_POOLS = "mean _adaptive_avg_pool2d max_pool2d_with_indices upsample_nearest2d upsample_bilinear2d"
_ACTIVATIONS = "relu silu gelu hardswish hardtanh leaky_relu relu6 mish elu tanh"
KEEPS_ZERO = KEEPS_ALL | {
    *f"{_MOVES} {_POOLS} {_ACTIVATIONS} avg_pool2d pixel_shuffle sum abs neg sqrt _prelu_kernel".split(),
    *(f"{name}_" for name in _ACTIVATIONS.split()),
}
"""Zero where their first argument is."""
IN_RANGE = KEEPS_ALL | {*f"{_MOVES} {_POOLS} pixel_shuffle amax amin".split()}
"""Whose results lie between the least and the largest value of their first argument."""
BETWEEN_0_AND_1 = frozenset(["sigmoid", "sigmoid_", "hardsigmoid", "hardsigmoid_", "_softmax", "_safe_softmax"])
NORMS = frozenset(
    ["native_batch_norm", "cudnn_batch_norm", "_native_batch_norm_legit_no_training", "_native_batch_norm_legit"]
) | {"native_group_norm", "native_layer_norm"}
PRODUCTS = {"convolution": ("input", "weight", "bias"), "addmm": ("mat1", "mat2", "self"), "mm": ("self", "mat2", "")}


@dataclass(frozen=True)
class Value:
    """Of one tensor, at one time: writing in place makes another."""

    number: int
    zero_if: frozenset[str] | None = None
    """Parameters of the model that make it zero when they are zero."""
    same_if: Mapping[int, frozenset[str]] = field(default_factory=dict)
    """Earlier values that it equals once these parameters are zero."""
    range: tuple[float, float] = EVERYWHERE


@dataclass
class Values:
    """Follows the values of a run.

    Args:
        parameters: names by `id`.
    """

    parameters: Mapping[int, str]
    watched: list[int] = field(default_factory=list)
    """Numbers of the values that others are compared with."""
    _known: dict[int, tuple[Tensor, Value]] = field(default_factory=dict)
    _ranges: dict[int, tuple[float, float]] = field(default_factory=dict)
    _count: int = 0

    def of(self, tensor: Tensor) -> Value:
        found = self._known.get(id(tensor))
        if found is None:
            name = self.parameters.get(id(tensor))
            return self._set(tensor, zero_if=None if name is None else frozenset([name]))
        return found[1]

    def see(self, name: str, args: Mapping[str, Any], out: Any) -> bool:
        """Follow one call of an operator; whether it added two tensors that are computed."""
        tensors = [value for value in args.values() if isinstance(value, Tensor)]
        results = [out] if isinstance(out, Tensor) else [t for t in out or () if isinstance(t, Tensor)]
        if name in NORMS:
            results = results[:1]
        added = name in ("add", "add_") and len(tensors) == 2
        before = [self.of(tensor) for tensor in tensors]
        in_place = name.endswith("_")
        if args.get("alpha", 1) != 1:  # nothing is known of a sum one part of which is scaled
            added, name = False, "scaled sum"
        zero = self._zero(name, args, before)
        low, high = self._range(name, args, before)
        same = self._sum(before) if added else self._passed(name, args, before)
        for tensor in results:
            self._set(tensor, zero, same if len(results) == 1 else NOTHING, (low, high))
            base = tensor._base
            if base is not None and in_place:  # a part of it was written
                self._set(base)
        return added and not any(id(tensor) in self.parameters for tensor in tensors)

    def _set(
        self,
        tensor: Tensor,
        zero_if: frozenset[str] | None = None,
        same_if: Mapping[int, frozenset[str]] = NOTHING,
        range: tuple[float, float] = EVERYWHERE,
    ) -> Value:
        self._count += 1
        value = Value(self._count, zero_if, same_if, range)
        self._known[id(tensor)] = tensor, value
        self._ranges[value.number] = range
        return value

    def _zero(self, name: str, args: Mapping[str, Any], before: list[Value]) -> frozenset[str] | None:
        if name in NORMS:
            return self._all(args.get("weight"), args.get("bias"))
        if name in PRODUCTS:
            data, weight, bias = (args.get(key) for key in PRODUCTS[name])
            factor = self._any(weight, data)
            if factor is None or bias is None:
                return factor
            offset = self.of(bias).zero_if
            return None if offset is None else factor | offset
        if name in ("mul", "mul_"):
            return self._any(*sorted((v for v in args.values() if isinstance(v, Tensor)), key=self._is_parameter))
        if name in ("add", "add_", "cat", "sub", "sub_"):
            operands = args["tensors"] if name == "cat" else list(args.values())[:2]
            return self._all(*operands) if all(isinstance(v, Tensor) for v in operands) else None
        if name in ("div", "div_") or name in KEEPS_ZERO or (name == "constant_pad_nd" and not args.get("value")):
            return before[0].zero_if if before else None
        return None

    def _is_parameter(self, tensor: Tensor) -> bool:
        return id(tensor) in self.parameters

    def _any(self, *tensors: Any) -> frozenset[str] | None:
        found = (self.of(tensor).zero_if for tensor in tensors if isinstance(tensor, Tensor))
        return next((zero for zero in found if zero is not None), None)

    def _all(self, *tensors: Any) -> frozenset[str] | None:
        found = [self.of(tensor).zero_if if isinstance(tensor, Tensor) else None for tensor in tensors]
        return None if None in found else frozenset().union(*found)  # type: ignore[arg-type]

    def _sum(self, before: list[Value]) -> Mapping[int, frozenset[str]]:
        """What a sum is once one of its two parts is zero."""
        same: dict[int, frozenset[str]] = {}
        for value, other in (before, before[::-1]):
            if other.zero_if is not None:
                same |= {number: needed | other.zero_if for number, needed in self._equals(value)}
        return same

    def _passed(self, name: str, args: Mapping[str, Any], before: list[Value]) -> Mapping[int, frozenset[str]]:
        if not before:
            return NOTHING
        if name in KEEPS_ALL:
            return dict(self._equals(before[0]))
        if name in ("relu", "relu_", "relu6", "hardtanh", "hardtanh_"):  # leaves what is in its range as it is
            least, most = _limits(name, args)
            fits = (item for item in self._equals(before[0]) if self._lies_in(item[0], least, most))
            return dict(fits)
        return NOTHING

    def _lies_in(self, number: int, least: float, most: float) -> bool:
        low, high = self._ranges[number]
        return least <= low and high <= most

    def _equals(self, value: Value) -> Iterable[tuple[int, frozenset[str]]]:
        """The values that are watched, and the value itself."""
        yield value.number, frozenset()
        yield from ((number, needed) for number, needed in value.same_if.items() if number in self.watched)

    def _range(self, name: str, args: Mapping[str, Any], before: list[Value]) -> tuple[float, float]:
        if name in BETWEEN_0_AND_1:
            return 0.0, 1.0
        if name == "cat":
            parts = [self.of(tensor).range for tensor in args["tensors"]]
            return min(low for low, _ in parts), max(high for _, high in parts)
        if not before:
            return EVERYWHERE
        low, high = before[0].range
        if name in ("relu", "relu_", "relu6", "hardtanh", "hardtanh_"):
            least, most = _limits(name, args)
            return min(max(low, least), most), max(min(high, most), least)
        if name in IN_RANGE:
            return low, high
        if name in ("avg_pool2d", "constant_pad_nd"):  # padding is among the values
            padding = float(args.get("value") or 0)
            return min(low, padding), max(high, padding)
        if len(before) == 2 and name in ("add", "add_"):
            return low + before[1].range[0], high + before[1].range[1]
        if len(before) == 2 and name in ("mul", "mul_") and min(low, before[1].range[0]) >= 0:
            return 0.0, high * before[1].range[1] if math.inf not in (high, before[1].range[1]) else math.inf
        return EVERYWHERE


def _limits(name: str, args: Mapping[str, Any]) -> tuple[float, float]:
    if name.startswith("relu"):
        return 0.0, 6.0 if name == "relu6" else math.inf
    return float(args.get("min_val", -1)), float(args.get("max_val", 1))
