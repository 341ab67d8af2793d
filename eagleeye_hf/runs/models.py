"""MODEL arguments of every kind."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
from torch import nn

from eagleeye_hf.channels.graph import ChannelGraph
from eagleeye_hf.errors import EagleEyeError, describe_error
from eagleeye_hf.evaluation.batchnorm import batch_norms
from eagleeye_hf.networks.config import InputConfig
from eagleeye_hf.networks.description import describe_input
from eagleeye_hf.networks.load import adjust_input, check_name, load_from_file, load_pretrained
from eagleeye_hf.publishing.checkpoint import from_pretrained
from eagleeye_hf.publishing.config import ARCHITECTURE, CONFIG, base_args, read_config
from eagleeye_hf.publishing.download import download_config
from eagleeye_hf.publishing.rebuild import build_thin
from eagleeye_hf.strategies.files import strategy_from
from eagleeye_hf.strategies.strategy import Strategy
from eagleeye_hf.tracing.trace import trace_model

MAX_SIDE = 4096
"""Of images that a checkpoint may tell."""
LOCAL = "local-dir:"
"""What timm writes before folders."""


def load_model(name: str, weights: str | None = None, inputs: InputConfig | None = None) -> nn.Module:
    """A trained network: of timm, its weights from a file or from the Hub; or of a checkpoint folder, ours or timm's.

    Args:
        inputs: what its images are like, where it does not say so itself.
    Raises:
        EagleEyeError: the name is unknown, the weights can't be had or don't fit, there is no BatchNorm in it, or it
            takes other images.
    """
    inputs, folder = inputs or InputConfig(), _folder_of(name)
    options = {} if inputs.in_chans is None else {"in_chans": inputs.in_chans}
    if folder is not None and weights is not None:
        raise EagleEyeError(f"`weights={weights}`: `model={name}` is a checkpoint, which has its own")
    if folder is not None and is_ours(folder):
        model = from_pretrained(folder)
    elif folder is not None:
        model = load_pretrained(f"{LOCAL}{folder}", **options)
    else:
        model = load_pretrained(name, **options) if weights is None else load_from_file(name, weights)
    batch_norms(model)
    return adjust_input(model, inputs)


def _folder_of(name: str) -> Path | None:
    """The folder that MODEL names; None where it is no folder.

    Raises:
        EagleEyeError: there is no such folder, or no checkpoint in it.
    """
    path = Path(name.removeprefix(LOCAL))
    if not path.is_dir():
        if name.startswith(LOCAL):
            raise EagleEyeError(f"`model={name}`: there is no such folder")
        return None
    if not (path / CONFIG).is_file():
        raise EagleEyeError(
            f"{path} has no {CONFIG}: it is no checkpoint, or an unfinished one. A folder needs the {CONFIG} that "
            "eagleeye or timm (`timm.models.save_for_hf`) writes; for weights alone, name their architecture and give "
            "the file with `weights`"
        )
    return path


def is_ours(folder: Path) -> bool:
    """Whether a checkpoint was saved by this package, and not by timm; a damaged one counts as ours, which says so."""
    try:
        return json.loads((folder / CONFIG).read_text(encoding="utf-8")).get("architecture") in (None, ARCHITECTURE)
    except (OSError, ValueError, AttributeError):
        return True


def open_model(name: str, inputs: InputConfig | None = None) -> tuple[nn.Module, dict[str, Any]]:
    """A network to look at, weights not needed; for a checkpoint its base, and the strategy that made it of that: its
    widths by the names of groups, its removed blocks, and its image size where that is not the base's."""
    inputs, folder = inputs or InputConfig(), find_checkpoint(name)
    config = read_config(folder) if folder else {}
    widths = config.get("eagleeye", {}).get("widths")
    if widths:
        arguments = config["model_args"]
        shape = {"num_classes": config["num_classes"], "in_chans": arguments.get("in_chans", 3)}
        told = _whole_size(config["eagleeye"])
        kept = {"widths": widths, "removed_blocks": arguments.get("removed_blocks", [])}
        kept |= {"image_size": config["pretrained_cfg"]["input_size"][-1]} if told else {}
        shape["pretrained_cfg_overlay"] = config["pretrained_cfg"] | told  # the size of an image too
        fused = bool(arguments.get("fused"))
        model = build_thin(arguments["base"], {}, base_args(arguments), fused=fused, **shape)
        return adjust_input(model, inputs), kept
    if _folder_of(name) is not None:
        return load_model(name, None, inputs), {}
    check_name(name)
    options = {} if inputs.in_chans is None else {"in_chans": inputs.in_chans}
    try:
        model = timm.create_model(name, **options)
    except Exception as error:  # timm and the Hub raise many kinds
        raise EagleEyeError(f"`model={name}` can't be opened ({describe_error(error)})") from error
    return adjust_input(model, inputs), {}


def _whole_size(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """The images of the full network, where a checkpoint of smaller ones tells them; it may come from strangers."""
    size = provenance.get("full_input_size")
    if not provenance.get("image_size") or not isinstance(size, list) or len(size) != 3:
        return {}
    return {"input_size": tuple(size)} if all(type(side) is int and 0 < side <= MAX_SIDE for side in size) else {}


def trace_kept(model: nn.Module, kept: Mapping[str, Any], place: str) -> tuple[ChannelGraph, Strategy]:
    """The graph and the strategy of what `open_model` gives; the full network's where nothing was pruned.

    Args:
        place: what to call the checkpoint in messages.
    """
    size = kept.get("image_size")
    graph = trace_model(model, describe_input(model), image_sizes=() if size is None else (size,))
    return graph, strategy_from(graph, kept, place) if kept else Strategy(graph.widths)


def find_checkpoint(name: str) -> Path | None:
    """Where the `config.json` of a checkpoint of ours lies: a folder, or the Hub's cache; None for other networks."""
    path = Path(name.removeprefix(LOCAL))
    if path.is_dir():
        return path if is_ours(path) else None
    if not name.startswith("hf-hub:"):
        return None
    repo, _, revision = name.removeprefix("hf-hub:").partition("@")
    try:
        return download_config(repo, revision or None)
    except EagleEyeError:  # one of timm's own, or none, which opening it tells
        return None
