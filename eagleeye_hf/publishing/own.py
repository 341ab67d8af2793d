"""Checkpoints of networks that timm does not know: what builds the full one comes from the caller, never a file."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from torch import nn

from eagleeye_hf.channels import resizing
from eagleeye_hf.errors import EagleEyeError, describe_error
from eagleeye_hf.networks.description import describe_model
from eagleeye_hf.publishing.config import ARCHITECTURE, BUILDER, clean_pretrained_cfg
from eagleeye_hf.publishing.recording import as_read, match_sizes

Build = Callable[[], nn.Module]


def build_own(builder: Build, sizes: Mapping[str, Any], removed_blocks: Collection[str] = ()) -> nn.Module:
    """The full network that a builder makes, shrunk to the blocks and sizes of a checkpoint.

    Raises:
        EagleEyeError: the builder fails, or the sizes are not of what it makes.
    """
    try:
        model = builder()
    except Exception as error:  # the caller's code
        raise EagleEyeError(f"`builder` fails ({describe_error(error)})") from error
    if not isinstance(model, nn.Module):
        raise EagleEyeError(f"`builder` returns the full network as it was before pruning; got {type(model).__name__}")
    try:
        return resizing.apply_sizes(resizing.remove_modules(model, removed_blocks), sizes)
    except ValueError as error:
        raise EagleEyeError(f"`builder` makes another network than the checkpoint is of: {error}") from error


def own_config(
    model: nn.Module,
    builder: Build,
    input_size: Sequence[int] | None,
    label_names: Sequence[str] | None,
    provenance: Mapping[str, Any] | None,
) -> tuple[dict[str, Any], nn.Module]:
    """The `config.json` of such a network, and the network that it describes.

    Raises:
        EagleEyeError: the builder does not make the network that this one was cut from.
    """
    full = build_own(builder, {})
    try:
        removed, sizes, rebuilt = match_sizes(full, model)
    except ValueError as error:
        raise EagleEyeError(f"`builder` makes another network than `model` was cut from: {error}") from error
    described = describe_model(model)
    cfg = dict(getattr(model, "pretrained_cfg", None) or {})
    cfg |= {"input_size": tuple(input_size or described.input_size), "mean": described.mean, "std": described.std}
    name = f"{getattr(builder, '__module__', '')}.{getattr(builder, '__qualname__', type(builder).__name__)}"
    config: dict[str, Any] = {
        "architecture": ARCHITECTURE,
        "num_classes": described.num_classes or 0,
        "model_args": {BUILDER: name.lstrip(".")[:256], "sizes": sizes}
        | ({"removed_blocks": removed} if removed else {}),
        "pretrained_cfg": clean_pretrained_cfg(cfg),
        "eagleeye": dict(provenance or {}),
    }
    if label_names:
        config["label_names"] = list(label_names)
        config["num_classes"] = len(label_names)
    return as_read(config), rebuilt
