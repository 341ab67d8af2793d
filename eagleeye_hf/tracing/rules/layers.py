"""What layers do to channel ids: convolutions, matrix products, normalisations, pooling."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from eagleeye_hf.tracing.ids import Dim, Dims, merge_factors
from eagleeye_hf.tracing.rules.register import Tracer, join, pin_all, rule, tie_columns


@rule("convolution")
def convolution(tracer: Tracer, args: dict[str, Any], out: Tensor) -> None:
    data, weight, bias, groups = args["input"], args["weight"], args["bias"], args["groups"]
    store = tracer.store
    x = tracer.dims(data)
    w = tracer.dims(weight, {1: x[1]} if groups == 1 and not args["transposed"] else {})
    pin_all(tracer, x[2:], "a convolution slides along them")
    if args["transposed"]:
        channels = transposed_channels(tracer, x[1], w, data.shape[1], weight.shape[1], groups)
    elif groups == 1:
        reads(tracer, x[1], w[1])
        channels = w[0]
    else:
        channels = grouped_channels(tracer, x[1], w, groups, (data.shape[1], weight.shape[0]))
    if out.shape[1] == 1:
        channels = None
    elif bias is not None:
        channels = join(tracer, [channels, tracer.dims(bias, {0: channels})[0]], "its bias is fixed")
    if isinstance(channels, np.ndarray):
        store.producers.append(channels)
    tracer.set_dims(out, [x[0], channels, *[None] * (out.ndim - 2)])
    positions = (data if args["transposed"] else out).shape
    tracer.count(math.prod(positions[2:]), [(positions[0], x[0]), *zip(weight.shape, w, strict=True)])


def reads(tracer: Tracer, data: Dim, weight: Dim) -> None:
    """The weight's input dimension holds one column per channel of the data."""
    join(tracer, [data, weight], "read by a layer of fixed size" if data is not None else "reads a fixed input")


def grouped_channels(tracer: Tracer, x: Dim, w: Dims, groups: int, sizes: tuple[int, int]) -> Dim:
    """Remove whole groups, or the i-th channel of every group, whichever gives more ways to choose."""
    store = tracer.store
    num_in, num_out = sizes[0] // groups, sizes[1] // groups
    if not isinstance(x, np.ndarray) or not isinstance(w[0], np.ndarray):
        pin_all(tracer, [x, w[0], w[1]], "in a grouped convolution of fixed size")
        return w[0]
    x_groups, out_groups = x.reshape(groups, num_in), w[0].reshape(groups, num_out)
    if num_in == 1 or tracer.prefers_whole_groups(groups, num_in, num_out):
        store.pin(w[1], "inside a convolution group")
        units = store.join(tie_columns(tracer, x_groups), tie_columns(tracer, out_groups))
        tracer.found_size(groups, units, role="groups")
    else:
        reads(tracer, store.tie_rows(x_groups), w[1])
        store.tie_rows(out_groups)
    return w[0]


def transposed_channels(tracer: Tracer, x: Dim, w: Dims, num_in: int, num_out: int, groups: int) -> Dim:
    if groups == 1:
        reads(tracer, x, w[0])
        return w[1]
    if not isinstance(x, np.ndarray):
        pin_all(tracer, w, "in a grouped convolution of fixed size")
        return None
    reads(tracer, x, w[0])
    if num_in == groups:
        tracer.found_size(groups, x, role="groups")
        tracer.store.pin(w[1], "inside a convolution group")
        return np.repeat(x, num_out)
    tracer.store.tie_rows(x.reshape(groups, -1))
    return merge_factors([(groups, None), (num_out, w[1] if isinstance(w[1], np.ndarray) else None)])


@rule("addmm", "mm", "bmm", "baddbmm")
def matrix_product(tracer: Tracer, args: dict[str, Any], out: Tensor) -> None:
    left: Tensor = args["mat1"] if "mat1" in args else args["batch1"] if "batch1" in args else args["self"]
    right: Tensor = args["mat2"] if "mat2" in args else args["batch2"]
    a, b = tracer.dims(left), tracer.dims(right)
    if tracer.is_weight(left) or tracer.is_weight(right):
        reads(tracer, a[-1], b[-2])
    else:
        pin_all(tracer, [a[-1], b[-2]], "summed over in a product of two feature maps")
    batch = [join(tracer, [p, q], "batched with a fixed size") for p, q in zip(a[:-2], b[:-2], strict=True)]
    columns = b[-1]
    if tracer.is_weight(right) and isinstance(columns, np.ndarray):
        tracer.store.producers.append(columns)
    if "mat1" in args or "batch1" in args:
        bias = tracer.dims(args["self"])
        if bias and args["self"].shape[-1] == out.shape[-1] > 1:
            columns = join(tracer, [columns, bias[-1]], "its bias is fixed")
        pin_all(tracer, bias[:-1], "added to a matrix product")
    tracer.set_dims(out, [*batch, a[-2], columns])
    sizes = [*zip(out.shape[:-2], batch, strict=True), (left.shape[-2], a[-2]), (left.shape[-1], a[-1])]
    tracer.count(1, [*sizes, (out.shape[-1], b[-1])])


@rule("native_batch_norm", "cudnn_batch_norm", "_native_batch_norm_legit_no_training", "_native_batch_norm_legit")
def batch_norm(tracer: Tracer, args: dict[str, Any], out: Any) -> None:
    data = args["input"]
    dims = list(tracer.dims(data))
    if args.get("training") or args.get("running_mean") is None:
        pin_all(tracer, [*dims[:1], *dims[2:]], "normalised over")
    if data.shape[1] > 1:
        vectors = [args.get(key) for key in ("weight", "bias", "running_mean", "running_var")]
        vector_dims = [tracer.dims(tensor, {0: dims[1]})[0] for tensor in vectors if isinstance(tensor, Tensor)]
        dims[1] = join(tracer, [dims[1], *vector_dims], "normalised by a layer of fixed size")
    tracer.set_dims(out[0] if isinstance(out, (tuple, list)) else out, dims)


@rule("native_group_norm")
def group_norm(tracer: Tracer, args: dict[str, Any], out: Any) -> None:
    pin_all(tracer, tracer.dims(args["input"]), "normalised over channels by GroupNorm")
    for key in ("weight", "bias"):
        if args.get(key) is not None:
            pin_all(tracer, tracer.dims(args[key]), "normalised over channels by GroupNorm")
    tracer.set_dims(out[0], tracer.dims(args["input"]))


@rule("native_layer_norm")
def layer_norm(tracer: Tracer, args: dict[str, Any], out: Any) -> None:
    dims = tracer.dims(args["input"])
    pin_all(tracer, dims[len(dims) - len(args["normalized_shape"]) :], "normalised over channels by LayerNorm")
    tracer.set_dims(out[0], dims)


def spatial(num_spatial: int, tracer: Tracer, args: dict[str, Any], out: Any) -> None:
    """Pooling, resizing or padding along the last dimensions."""
    dims = tracer.dims(args["self"] if "self" in args else args["input"])
    pin_all(tracer, dims[-num_spatial:], "pooled or resized along them")
    for tensor in out if isinstance(out, (tuple, list)) else [out]:
        tracer.set_dims(tensor, [*dims[:-num_spatial], *[None] * num_spatial])


SPATIAL = {
    1: "avg_pool1d adaptive_avg_pool1d upsample_nearest1d reflection_pad1d replication_pad1d",
    2: "max_pool2d_with_indices avg_pool2d _adaptive_avg_pool2d adaptive_max_pool2d upsample_nearest2d"
    " upsample_bilinear2d upsample_bicubic2d _upsample_nearest_exact2d reflection_pad2d replication_pad2d",
    3: "max_pool3d_with_indices avg_pool3d _adaptive_avg_pool3d adaptive_max_pool3d",
}
"""Operators by the number of dimensions that they go along."""
for number, names in SPATIAL.items():
    rule(*names.split())(functools.partial(spatial, number))


@rule("_weight_norm_interface")
def weight_norm(tracer: Tracer, args: dict[str, Any], out: Sequence[Tensor]) -> None:
    dims, axis = list(tracer.dims(args["v"])), args.get("dim", 0)
    pin_all(tracer, [dim for i, dim in enumerate(dims) if i != axis], "normalised by weight_norm")
    dims[axis] = join(tracer, [dims[axis], tracer.dims(args["g"])[axis]], "scaled by weight_norm")
    tracer.set_dims(out[0], dims)
