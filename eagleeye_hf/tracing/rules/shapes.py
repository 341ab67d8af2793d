"""What operators that move, cut and join tensors do to channel ids."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from eagleeye_hf.tracing.ids import Dim, Product, factors_of, merge_factors
from eagleeye_hf.tracing.rules.register import NO_RULE, Tracer, join, pin_all, rule, tie_columns


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
