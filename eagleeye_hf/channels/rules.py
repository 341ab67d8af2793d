"""What each ATen operator does to channel ids.

A rule gets the tracer, the call's arguments by name and its result, and describes the result's dimensions. An operator
without a rule pins what it reads: those channels are never removed, which is always safe.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from eagleeye_hf.channels.shadow import Dim, Dims, Product, Store, factors_of, merge_factors


class Tracer(Protocol):
    """What a rule may use."""

    store: Store

    def dims(self, tensor: Tensor) -> Dims: ...
    def set_dims(self, tensor: Tensor, dims: Sequence[Dim]) -> None: ...
    def is_weight(self, tensor: Tensor) -> bool: ...
    def found_size(self, size: int, ids: Dim, role: str = "") -> None: ...
    def merged(self, size: int, ids: np.ndarray) -> None: ...
    def count(self, factor: int, dims: Sequence[tuple[int, Dim]]) -> None: ...
    def prefers_whole_groups(self, groups: int, num_in: int, num_out: int) -> bool: ...
    def keeps_outer(self, outer: int) -> bool: ...


Rule = Callable[[Tracer, dict[str, Any], Any], None]
RULES: dict[str, Rule] = {}
NO_RULE = "the operator {} has no rule"


def rule(*names: str) -> Callable[[Rule], Rule]:
    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


def join(tracer: Tracer, dims: Sequence[Dim], reason: str) -> Dim:
    """Tie dims of one size; one that is fixed fixes the others."""
    tracked = [dim for dim in dims if dim is not None]
    if not tracked:
        return None
    first = tracked[0]
    if len(tracked) < len(dims):
        for dim in tracked:
            tracer.store.pin(dim, reason)
    if all(isinstance(dim, np.ndarray) for dim in tracked):
        joined = first
        for dim in tracked[1:]:
            joined = tracer.store.join(joined, dim)  # type: ignore[arg-type]
        return joined
    sizes = {tuple(size for size, _ in dim.factors) if isinstance(dim, Product) else None for dim in tracked}
    if len(sizes) > 1:
        for dim in tracked:
            tracer.store.pin(dim, "dimensions flattened in different ways meet")
        return None
    assert isinstance(first, Product)
    columns = zip(*(dim.factors for dim in tracked if isinstance(dim, Product)), strict=True)
    return Product(tuple((column[0][0], join(tracer, [ids for _, ids in column], reason)) for column in columns))  # type: ignore[misc]


def pin_all(tracer: Tracer, dims: Sequence[Dim], reason: str) -> None:
    for dim in dims:
        tracer.store.pin(dim, reason)


def tie_columns(tracer: Tracer, ids: np.ndarray) -> np.ndarray:
    """Tie the columns of a matrix of ids with one another; return the first."""
    return tracer.store.tie_rows(ids.T)


def elementwise(tracer: Tracer, inputs: Sequence[Tensor], out: Tensor) -> None:
    """Operators that compute each element from the elements at its place (with broadcasting)."""
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
    for axis in args.get("dims") or ():
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


@rule("convolution")
def convolution(tracer: Tracer, args: dict[str, Any], out: Tensor) -> None:
    data, weight, bias, groups = args["input"], args["weight"], args["bias"], args["groups"]
    store = tracer.store
    x, w = tracer.dims(data), tracer.dims(weight)
    pin_all(tracer, x[2:], "a convolution slides along them")
    if args["transposed"]:
        channels = transposed_channels(tracer, x[1], w, data.shape[1], weight.shape[1], groups)
    elif groups == 1:
        reads(tracer, x[1], w[1])
        channels = w[0]
    else:
        channels = grouped_channels(tracer, x[1], w, groups, (data.shape[1], weight.shape[0]))
    if bias is not None:
        channels = join(tracer, [channels, tracer.dims(bias)[0]], "its bias is fixed") if out.shape[1] > 1 else None
    if isinstance(channels, np.ndarray):
        store.producers.append(channels)
    tracer.set_dims(out, [x[0], channels, *[None] * (out.ndim - 2)])
    positions = (data if args["transposed"] else out).shape
    tracer.count(math.prod(positions[2:]) * positions[0], list(zip(weight.shape, w, strict=True)))


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
        own = [args.get(key) for key in ("weight", "bias", "running_mean", "running_var")]
        own_dims = [tracer.dims(tensor)[0] for tensor in own if isinstance(tensor, Tensor)]
        dims[1] = join(tracer, [dims[1], *own_dims], "normalised by a layer of fixed size")
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


@rule(
    "max_pool2d_with_indices",
    "max_pool3d_with_indices",
    "avg_pool1d",
    "avg_pool2d",
    "avg_pool3d",
    "_adaptive_avg_pool2d",
    "_adaptive_avg_pool3d",
    "adaptive_avg_pool1d",
    "adaptive_max_pool2d",
    "adaptive_max_pool3d",
    "upsample_nearest1d",
    "upsample_nearest2d",
    "upsample_bilinear2d",
    "upsample_bicubic2d",
    "_upsample_nearest_exact2d",
    "reflection_pad1d",
    "reflection_pad2d",
    "replication_pad1d",
    "replication_pad2d",
)
def spatial(tracer: Tracer, args: dict[str, Any], out: Any) -> None:
    dims = tracer.dims(args["self"] if "self" in args else args["input"])
    result = out[0] if isinstance(out, (tuple, list)) else out
    num_spatial = 2 if result.ndim == 4 else result.ndim - 2
    pin_all(tracer, dims[-num_spatial:], "pooled or resized along them")
    for tensor in out if isinstance(out, (tuple, list)) else [out]:
        tracer.set_dims(tensor, [*dims[:-num_spatial], *[None] * num_spatial])


@rule("constant_pad_nd")
def constant_pad(tracer: Tracer, args: dict[str, Any], out: Tensor) -> None:
    dims = list(tracer.dims(args["self"]))
    pads = args["pad"]
    for i in range(len(pads) // 2):
        before, after, axis = pads[2 * i], pads[2 * i + 1], out.ndim - 1 - i
        dim = dims[axis]
        if not (before or after) or dim is None:
            continue
        if not isinstance(dim, np.ndarray) or min(before, after) < 0:
            tracer.store.pin(dim, "cropped or padded")
            dims[axis] = None
            continue
        front, back = tracer.store.free(before), tracer.store.free(after)
        tracer.found_size(before, front)
        tracer.found_size(after, back)
        dims[axis] = np.concatenate([front, dim, back])
    tracer.set_dims(out, dims)


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


@rule("cat", "concat")
def cat(tracer: Tracer, args: dict[str, Any], out: Tensor) -> None:
    axis = args.get("dim", 0) % out.ndim
    tensors = [tensor for tensor in args["tensors"] if tensor.ndim == out.ndim]
    described = [tracer.dims(tensor) for tensor in tensors]
    dims: list[Dim] = []
    for i in range(out.ndim):
        column = [dims_[i] for dims_ in described]
        if i != axis:
            dims.append(join(tracer, column, "concatenated with a fixed size"))
        elif all(dim is None for dim in column):
            dims.append(None)
        else:
            dims.append(np.concatenate([_as_ids(tracer, t.shape[i], d) for t, d in zip(tensors, column, strict=True)]))
    tracer.set_dims(out, dims)


def _as_ids(tracer: Tracer, size: int, dim: Dim) -> np.ndarray:
    if isinstance(dim, np.ndarray):
        return dim
    tracer.store.pin(dim, "flattened, then concatenated")
    ids = tracer.store.free(size)
    tracer.store.pin(ids, "concatenated with a fixed size")
    return ids


@rule("stack")
def stack(tracer: Tracer, args: dict[str, Any], out: Tensor) -> None:
    axis = args.get("dim", 0) % out.ndim
    described = [tracer.dims(tensor) for tensor in args["tensors"]]
    dims = [join(tracer, column, "stacked with a fixed size") for column in zip(*described, strict=True)]
    tracer.set_dims(out, [*dims[:axis], None, *dims[axis:]])


@rule("split", "split_with_sizes", "chunk", "unsafe_split", "unsafe_split_with_sizes", "unsafe_chunk")
def split(tracer: Tracer, args: dict[str, Any], out: Sequence[Tensor]) -> None:
    data, axis = args["self"], args.get("dim", 0) % args["self"].ndim
    dims = list(tracer.dims(data))
    ids = dims[axis]
    sizes = [piece.shape[axis] for piece in out]
    if isinstance(ids, Product):
        tracer.store.pin(ids, "flattened, then split")
        ids = None
    pieces: list[Dim] = [None] * len(out)
    if ids is not None:
        tracer.found_size(len(ids), ids)
        pieces = list(np.split(ids, np.cumsum(sizes)[:-1]))
        by_size: dict[int, np.ndarray] = {}
        for size, piece in zip(sizes, pieces, strict=True):
            assert isinstance(piece, np.ndarray)
            tracer.found_size(size, piece)
            if args.get("split_size") or args.get("chunks"):  # equal pieces must stay equal
                if size in by_size:
                    tracer.store.tie(by_size[size], piece)
                by_size.setdefault(size, piece)
    for tensor, piece in zip(out, pieces, strict=True):
        tracer.set_dims(tensor, [*dims[:axis], piece, *dims[axis + 1 :]])


@rule("slice")
def slice_rule(tracer: Tracer, args: dict[str, Any], out: Tensor) -> None:
    data, axis = args["self"], args.get("dim", 0) % args["self"].ndim
    dims = list(tracer.dims(data))
    ids, size = dims[axis], data.shape[axis]
    start, stop, step = slice(args.get("start"), args.get("end"), args.get("step", 1)).indices(size)
    if (start, stop, step) == (0, size, 1) or ids is None:
        tracer.set_dims(out, dims)
        return
    if isinstance(ids, Product):
        tracer.store.pin(ids, "flattened, then sliced")
        dims[axis] = None
        tracer.set_dims(out, dims)
        return
    if step > 1:
        if size % step == 0:
            tie_columns(tracer, ids.reshape(-1, step))
        else:
            tracer.store.pin(ids, "sliced with a step")
    else:
        tracer.found_size(size, ids)
        for piece in (ids[:start], ids[:stop], ids[start:]):
            if 0 < len(piece) < size:
                tracer.found_size(len(piece), piece)
        length = stop - start
        if size == 2 * length and start in (0, length):  # `x[:, : c // 2]`: the halves stay equal
            tracer.store.tie_rows(ids.reshape(2, length))
    dims[axis] = ids[start:stop:step]
    tracer.set_dims(out, dims)


@rule("select", "unbind")
def select(tracer: Tracer, args: dict[str, Any], out: Any) -> None:
    axis = args.get("dim", 0) % args["self"].ndim
    dims = list(tracer.dims(args["self"]))
    tracer.store.pin(dims.pop(axis), "single channels are picked by number")
    for tensor in [out] if isinstance(out, Tensor) else out:
        tracer.set_dims(tensor, dims)


@rule("index", "index_select")
def index(tracer: Tracer, args: dict[str, Any], out: Tensor) -> None:
    """What is looked up by number stays; the other dimensions pass."""
    dims: list[Dim] = list(tracer.dims(args["self"]))
    if "dim" in args:
        indices: list[Tensor | None] = [None] * (args["dim"] % len(dims)) + [args["index"]]
    else:
        indices = list(args["indices"])
    used = [axis for axis, tensor in enumerate(indices) if tensor is not None]
    for axis in used:
        pin_all(tracer, [dims[axis], *tracer.dims(indices[axis])], "looked up by number")  # type: ignore[arg-type]
    num_new = out.ndim - (len(dims) - len(used))
    first = used[0] if used[-1] - used[0] == len(used) - 1 else 0  # where they are not side by side, they come first
    kept = [dim for axis, dim in enumerate(dims) if axis not in used]
    tracer.set_dims(out, [*kept[:first], *[None] * num_new, *kept[first:]])


@rule("unfold")
def unfold(tracer: Tracer, args: dict[str, Any], out: Tensor) -> None:
    dims = list(tracer.dims(args["self"]))
    axis = args["dimension"] % len(dims)
    tracer.store.pin(dims[axis], "cut into windows")
    tracer.set_dims(out, [*dims[:axis], None, *dims[axis + 1 :], None])


@rule("as_strided_")
def restride(tracer: Tracer, args: dict[str, Any], out: Tensor) -> None:
    """Pooling to one pixel sets strides and keeps the shape."""
    dims = tracer.dims(args["self"])
    if len(dims) != out.ndim:
        pin_all(tracer, dims, NO_RULE.format("as_strided"))
        dims = (None,) * out.ndim
    tracer.set_dims(out, dims)


@rule("view", "_unsafe_view", "reshape", "_reshape_alias", "_reshape_copy", "view_copy")
def view(tracer: Tracer, args: dict[str, Any], out: Tensor) -> None:
    """Match the factors of the old and the new dimensions from the left."""
    data = args["self"]
    queue = deque(
        (size, ids)
        for length, dim in zip(data.shape, tracer.dims(data), strict=True)
        for size, ids in factors_of(length, dim)
        if size > 1
    )
    result: list[Dim] = []
    for wanted in out.shape:
        factors: list[tuple[int, np.ndarray | None]] = []
        while wanted > 1:
            size, ids = queue.popleft()
            if wanted % size:
                take = math.gcd(wanted, size)
                if take == 1 or (size // take > 1 and wanted != take):  # cut across old dimensions
                    pin_all(tracer, [ids, *[i for _, i in queue], *result], "reshaped across dimensions")
                    for _, used in factors:
                        tracer.store.pin(used, "reshaped across dimensions")
                    tracer.set_dims(out, [None] * out.ndim)
                    return
                outer, inner = (None, None) if ids is None else _split(tracer, ids, take)
                queue.appendleft((size // take, inner))
                size, ids = take, outer
            factors.append((size, ids))
            wanted //= size
        if sum(ids is not None for _, ids in factors) > 1:  # repeats of the same are no channels of their own
            factors = [(size, None if ids is None or tracer.store.is_free(ids) else ids) for size, ids in factors]
        result.append(merged := merge_factors(factors))
        if len(factors) > 1 and isinstance(merged, np.ndarray):
            tracer.merged(len(merged), merged)
        elif isinstance(merged, np.ndarray):
            tracer.found_size(len(merged), merged, role="shape")
    tracer.set_dims(out, result)


def _split(tracer: Tracer, ids: np.ndarray, outer: int) -> tuple[np.ndarray | None, np.ndarray | None]:
    if tracer.keeps_outer(outer):
        kept = tie_columns(tracer, ids.reshape(outer, -1))
        tracer.found_size(outer, kept, role="head")
        return kept, None
    return tracer.store.split(ids, outer)


@rule("permute", "transpose", "t", "swapaxes", "movedim")
def permute(tracer: Tracer, args: dict[str, Any], out: Tensor) -> None:
    dims = tracer.dims(args["self"])
    order = list(range(len(dims)))
    if "dims" in args:
        order = [axis % len(dims) for axis in args["dims"]]
    elif len(dims) > 1:
        i, j = args.get("dim0", 0), args.get("dim1", 1)
        order[i], order[j] = order[j], order[i]
    tracer.set_dims(out, [dims[axis] for axis in order])


@rule("unsqueeze")
def unsqueeze(tracer: Tracer, args: dict[str, Any], out: Tensor) -> None:
    dims = tracer.dims(args["self"])
    axis = args["dim"] % out.ndim
    tracer.set_dims(out, [*dims[:axis], None, *dims[axis:]])


@rule("squeeze")
def squeeze(tracer: Tracer, args: dict[str, Any], out: Tensor) -> None:
    data = args["self"]
    axes = args.get("dim", range(data.ndim))
    axes = {axis % data.ndim for axis in ([axes] if isinstance(axes, int) else axes)}
    dims = tracer.dims(data)
    tracer.set_dims(out, [d for axis, d in enumerate(dims) if not (axis in axes and data.shape[axis] == 1)])


@rule("expand")
def expand(tracer: Tracer, args: dict[str, Any], out: Tensor) -> None:
    """A dimension expanded from one is the same everywhere, so any of it can go."""
    data = args["self"]
    dims = [None] * (out.ndim - data.ndim) + list(tracer.dims(data))
    shape = [1] * (out.ndim - data.ndim) + list(data.shape)
    tracer.set_dims(
        out,
        [tracer.store.free(new) if new != old else dim for old, new, dim in zip(shape, out.shape, dims, strict=True)],
    )


@rule("repeat")
def repeat(tracer: Tracer, args: dict[str, Any], out: Tensor) -> None:
    data = args["self"]
    shape = [1] * (out.ndim - data.ndim) + list(data.shape)
    dims = [None] * (out.ndim - data.ndim) + list(tracer.dims(data))
    tracer.set_dims(
        out,
        [
            dim
            if new == old
            else tracer.store.free(new)
            if old == 1
            else merge_factors([(new // old, None), (old, dim)])  # type: ignore[list-item]
            for old, new, dim in zip(shape, out.shape, dims, strict=True)
        ],
    )


@rule("pixel_shuffle")
def pixel_shuffle(tracer: Tracer, args: dict[str, Any], out: Tensor) -> None:
    dims = list(tracer.dims(args["self"]))
    if isinstance(dims[-3], np.ndarray):
        dims[-3] = tie_columns(tracer, dims[-3].reshape(-1, args["upscale_factor"] ** 2))
    tracer.set_dims(out, dims)


@rule("pixel_unshuffle")
def pixel_unshuffle(tracer: Tracer, args: dict[str, Any], out: Tensor) -> None:
    dims = list(tracer.dims(args["self"]))
    dims[-3] = merge_factors([*factors_of(args["self"].shape[-3], dims[-3]), (args["downscale_factor"] ** 2, None)])
    tracer.set_dims(out, dims)


@rule("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(tracer: Tracer, args: dict[str, Any], out: Tensor) -> None:
    dims = list(tracer.dims(args["self"]))
    if isinstance(dims[1], np.ndarray):
        row = tracer.store.tie_rows(dims[1].reshape(args["groups"], -1))
        dims[1] = np.repeat(row, args["groups"])
    tracer.set_dims(out, dims)


@rule("glu")
def gated_linear_unit(tracer: Tracer, args: dict[str, Any], out: Tensor) -> None:
    dims = list(tracer.dims(args["self"]))
    axis = args.get("dim", -1) % out.ndim
    if isinstance(dims[axis], np.ndarray):
        dims[axis] = tracer.store.tie_rows(dims[axis].reshape(2, -1))
    tracer.set_dims(out, dims)


@rule("_weight_norm_interface")
def weight_norm(tracer: Tracer, args: dict[str, Any], out: Sequence[Tensor]) -> None:
    dims, axis = list(tracer.dims(args["v"])), args.get("dim", 0)
    pin_all(tracer, [dim for i, dim in enumerate(dims) if i != axis], "normalised by weight_norm")
    dims[axis] = join(tracer, [dims[axis], tracer.dims(args["g"])[axis]], "scaled by weight_norm")
    tracer.set_dims(out[0], dims)


@rule("copy_")
def copy_in_place(tracer: Tracer, args: dict[str, Any], out: Tensor) -> None:
    """Writing into part of a tensor keeps what its dimensions were."""
    target, source = tracer.dims(args["self"]), tracer.dims(args["src"])
    for axis in range(1, min(len(target), len(source)) + 1):
        if args["self"].shape[-axis] == args["src"].shape[-axis] > 1:
            join(tracer, [target[-axis], source[-axis]], "copied into a tensor of fixed size")


def apply_rule(tracer: Tracer, func: Any, args: dict[str, Any], out: Any) -> None:
    """Describe the result of one operator call."""
    name = func._schema.name.removeprefix("aten::")
    inputs = [value for value in args.values() if isinstance(value, Tensor)]
    if name in RULES:
        RULES[name](tracer, args, out)
    elif isinstance(out, Tensor) and (torch.Tag.pointwise in func.tags or name in POINTWISE):
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
