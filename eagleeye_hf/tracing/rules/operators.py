"""What each ATen operator does to channel ids.

A rule gets the tracer, the call's arguments by name and its result, and describes the result's dimensions. An operator
without a rule pins what it reads: those channels are never removed, which is always safe.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import eagleeye_hf.tracing.rules.joining
import eagleeye_hf.tracing.rules.layers
import eagleeye_hf.tracing.rules.shapes  # noqa: F401  all three register their rules
from eagleeye_hf.tracing.ids import Dim
from eagleeye_hf.tracing.rules.register import NO_RULE, RULES, Tracer, join, operator_name, pin_all, rule


def elementwise(tracer: Tracer, inputs: Sequence[Tensor], out: Tensor) -> None:
    """Operators that compute each element from the elements at its place (with broadcasting)."""
    if len(inputs) == 1 and inputs[0].shape == out.shape:
        tracer.set_dims(
            out, [d if size > 1 else None for size, d in zip(out.shape, tracer.dims(inputs[0]), strict=True)]
        )
        return
    result: list[Dim] = []
    described = [(tensor.shape, tracer.dims(tensor)) for tensor in inputs]
    for axis in range(1, out.ndim + 1):
        size = out.shape[-axis]
        meeting = [dims[-axis] for shape, dims in described if len(shape) >= axis and shape[-axis] == size and size > 1]
        result.append(join(tracer, meeting, "meets a tensor of fixed size") if meeting else None)
    tracer.set_dims(out, result[::-1])


@rule("clone", "detach", "contiguous", "_to_copy", "alias", "lift_fresh", "dropout", "_conj", "flip", "roll")
def same_dims(tracer: Tracer, args: dict[str, Any], out: Tensor) -> None:
    tensor = args["self"] if "self" in args else args["input"]
    dims = tracer.dims(tensor)
    axes = args.get("dims") or (range(tensor.ndim) if "shifts" in args else ())  # without any all are rolled, flattened
    for axis in axes:
        tracer.store.pin(dims[axis], "moved along the channels")
    tracer.set_dims(out, dims)


@rule("zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like")
def constant_like(tracer: Tracer, args: dict[str, Any], out: Tensor) -> None:
    tracer.set_dims(out, tracer.dims(args["self"]))


@rule("zeros", "ones", "full", "new_zeros", "new_ones", "new_full")
def constant(tracer: Tracer, args: dict[str, Any], out: Tensor) -> None:
    """A tensor that is the same everywhere stays itself whatever is removed."""
    tracer.set_dims(out, [tracer.store.free(size) if size > 1 else None for size in out.shape])


@rule("empty", "new_empty", "arange", "eye", "scalar_tensor", "tensor", "linspace", "empty_strided")
def unknown_values(tracer: Tracer, args: dict[str, Any], out: Tensor) -> None:
    tracer.set_dims(out, [None] * out.ndim)


@rule("mean", "sum", "amax", "amin", "max", "min", "var", "var_mean", "std", "std_mean", "prod", "logsumexp")
@rule("linalg_vector_norm", "norm", "argmax", "argmin", "any", "all", "topk", "sort", "cumsum", "median")
def reduction(tracer: Tracer, args: dict[str, Any], out: Any) -> None:
    data = next(value for value in args.values() if isinstance(value, Tensor))
    dims = tracer.dims(data)
    axes = args.get("dim")
    axes = range(data.ndim) if axes is None or axes == [] else [axes] if isinstance(axes, int) else axes
    reduced = {axis % data.ndim for axis in axes}
    pin_all(tracer, [dims[axis] for axis in reduced], "summed or compared across channels")
    for tensor in out if isinstance(out, (tuple, list)) else [out]:
        if tensor.ndim == data.ndim:
            tracer.set_dims(tensor, [None if axis in reduced else dim for axis, dim in enumerate(dims)])
        else:
            tracer.set_dims(tensor, [dim for axis, dim in enumerate(dims) if axis not in reduced])


@rule("_softmax", "_log_softmax", "_safe_softmax", "softmax", "cumprod")
def softmax(tracer: Tracer, args: dict[str, Any], out: Tensor) -> None:
    dims = list(tracer.dims(args["self"]))
    tracer.store.pin(dims[args["dim"]], "softmax across channels")
    tracer.set_dims(out, dims)


@rule("copy_")
def copy_in_place(tracer: Tracer, args: dict[str, Any], out: Tensor) -> None:
    """Writing into part of a tensor keeps what its dimensions were."""
    target, source = tracer.dims(args["self"]), tracer.dims(args["src"])
    for axis in range(1, min(len(target), len(source)) + 1):
        if args["self"].shape[-axis] == args["src"].shape[-axis] > 1:
            join(tracer, [target[-axis], source[-axis]], "copied into a tensor of fixed size")


def apply_rule(tracer: Tracer, func: Any, args: dict[str, Any], out: Any) -> None:
    """Describe the result of one operator call."""
    name = operator_name(func)
    if name in RULES:
        RULES[name](tracer, args, out)
        return
    inputs = [value for value in args.values() if isinstance(value, Tensor)]
    if isinstance(out, Tensor) and (torch.Tag.pointwise in func.tags or name in POINTWISE):
        elementwise(tracer, inputs, out)
    else:
        listed = [
            t for value in args.values() if isinstance(value, (list, tuple)) for t in value if isinstance(t, Tensor)
        ]
        for tensor in inputs + listed:
            pin_all(tracer, tracer.dims(tensor), NO_RULE.format(name))
        for tensor in [out] if isinstance(out, Tensor) else out if isinstance(out, (tuple, list)) else []:
            if isinstance(tensor, Tensor):
                tracer.set_dims(tensor, [None] * tensor.ndim)


POINTWISE = {"hardswish", "hardswish_", "hardtanh", "hardtanh_", "leaky_relu_", "relu6", "_prelu_kernel", "mish"}
"""Pointwise operators that PyTorch does not tag as such."""
