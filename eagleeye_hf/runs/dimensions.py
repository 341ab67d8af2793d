"""What a network can change: traced at the image sizes that a search may choose from."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from eagleeye_hf.channels.graph import ChannelGraph
from eagleeye_hf.errors import EagleEyeError
from eagleeye_hf.networks.description import describe_model, unwrap_model
from eagleeye_hf.search.config import SearchConfig
from eagleeye_hf.strategies.files import read_image_size
from eagleeye_hf.telling import say
from eagleeye_hf.tracing.trace import trace_model, with_image_sizes

LEAST_MAP = 4
"""Side of the last feature map, below which default sizes don't go."""
STRIDE = 32
"""Of networks that tell none."""


def trace_network(
    model: nn.Module, search: SearchConfig | None = None, strategy: str | None = None, tell: bool = True
) -> ChannelGraph:
    """Trace a network, at the image sizes that a search may choose from or that a strategy file names, too.

    Args:
        tell: say which sizes are left out.
    Raises:
        EagleEyeError: the network can't be traced, or takes no images of a size that is asked for.
    """
    if strategy:
        found = read_image_size(strategy)
        return trace_model(model, image_sizes=() if found is None else (found,))
    if search is None or "size" not in search.dimensions:
        return trace_model(model)
    largest = describe_model(model).image_size[0]
    if max(search.image_sizes, default=0) > largest:
        raise EagleEyeError(
            f"`image_sizes` are at most the network's own {largest} pixels; got {max(search.image_sizes)}"
        )
    if search.image_sizes:
        return trace_model(model, image_sizes=search.image_sizes)
    left_out = list[int]()
    graph = with_image_sizes(model, trace_model(model), default_sizes(model, tell), left_out)
    if left_out and tell:
        sizes = ", ".join(map(str, left_out))
        say(f"image sizes that are left out, for the network does not run there, or as another one: {sizes} px")
    return graph


def default_sizes(model: nn.Module, tell: bool = True) -> tuple[int, ...]:
    """Sides of images between half of the network's own and all of it that its stride divides."""
    own, config = describe_model(model).image_size, dict(getattr(unwrap_model(model), "pretrained_cfg", None) or {})
    if config.get("fixed_input_size") or own[0] != own[1]:
        if tell:
            say(f"the image size stays: the network is built for {own[0]} x {own[1]} pixels")
        return ()
    stride = _stride(model)
    least = max(math.ceil(own[0] / 2), LEAST_MAP * stride)
    return tuple(size for size in range(stride, own[0] + 1, stride) if size >= least)


def _stride(model: nn.Module) -> int:
    """Pixels of the image per pixel of the last feature map."""
    infos: Any = getattr(unwrap_model(model), "feature_info", None)
    try:
        return int(infos[-1]["reduction"])
    except (TypeError, KeyError, IndexError):
        return STRIDE
