"""What operators that join tensors, or take parts of one, do to channel ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from eagleeye_hf.tracing.ids import Dim, Product
from eagleeye_hf.tracing.rules.register import Tracer, join, pin_all, rule, tie_columns


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


@rule("glu")
def gated_linear_unit(tracer: Tracer, args: dict[str, Any], out: Tensor) -> None:
    dims = list(tracer.dims(args["self"]))
    axis = args.get("dim", -1) % out.ndim
    if isinstance(dims[axis], np.ndarray):
        dims[axis] = tracer.store.tie_rows(dims[axis].reshape(2, -1))
    tracer.set_dims(out, dims)
