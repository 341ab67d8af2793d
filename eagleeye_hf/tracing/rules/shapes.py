"""What operators that reshape a tensor, or move its dimensions, do to channel ids."""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import numpy as np
from torch import Tensor

from eagleeye_hf.tracing.ids import Dim, factors_of, merge_factors
from eagleeye_hf.tracing.rules.register import NO_RULE, Tracer, pin_all, rule, tie_columns


@rule("as_strided_")
def restride(tracer: Tracer, args: dict[str, Any], out: Tensor) -> None:
    """Pooling to one pixel sets strides and keeps the shape."""
    dims = tracer.dims(args["self"])
    if len(dims) != out.ndim:
        pin_all(tracer, dims, NO_RULE.format("as_strided"))
        dims = (None,) * out.ndim
    tracer.set_dims(out, dims)


@rule("view", "_unsafe_view", "reshape", "_reshape_alias", "_reshape_copy", "view_copy")
def reshape(tracer: Tracer, args: dict[str, Any], out: Tensor) -> None:
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
        if sum(ids is not None for _, ids in factors) > 1:  # repeats of the same are no further channels
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
