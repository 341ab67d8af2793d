"""MODEL arguments of every kind."""

from __future__ import annotations

from pathlib import Path

import timm
from torch import nn

from eagleeye_hf.errors import EagleEyeError, describe_error
from eagleeye_hf.evaluation.batchnorm import batch_norms
from eagleeye_hf.networks.load import check_name, load_from_file, load_pretrained
from eagleeye_hf.publishing.checkpoint import from_pretrained
from eagleeye_hf.publishing.config import base_args, read_config
from eagleeye_hf.publishing.download import download_config
from eagleeye_hf.publishing.rebuild import build_thin


def load_model(name: str, weights: str | None = None) -> nn.Module:
    """A trained network: of timm, its weights from a file or from the Hub; or a checkpoint folder's.

    Raises:
        EagleEyeError: the name is unknown, the weights can't be had or don't fit, or there is no BatchNorm in it.
    """
    if Path(name).is_dir():
        if weights is not None:
            raise EagleEyeError(f"`weights={weights}`: `model={name}` is a checkpoint, which has its own")
        model = from_pretrained(name)
    else:
        model = load_pretrained(name) if weights is None else load_from_file(name, weights)
    batch_norms(model)
    return model


def open_model(name: str) -> tuple[nn.Module, dict[str, int]]:
    """A network to look at, weights not needed; for a checkpoint its base, with the widths that it keeps."""
    folder = find_checkpoint(name)
    config = read_config(folder) if folder else {}
    widths = config.get("eagleeye", {}).get("widths")
    if widths:
        arguments = config["model_args"]
        shape = {"num_classes": config["num_classes"], "in_chans": arguments.get("in_chans", 3)}
        shape["pretrained_cfg_overlay"] = config["pretrained_cfg"]  # the size of an image too
        fused = bool(arguments.get("fused"))
        return build_thin(arguments["base"], {}, base_args(arguments), fused=fused, **shape), widths
    if Path(name).is_dir():
        return from_pretrained(name), {}
    check_name(name)
    try:
        return timm.create_model(name), {}
    except Exception as error:  # timm and the Hub raise many kinds
        raise EagleEyeError(f"`model={name}` can't be opened ({describe_error(error)})") from error


def find_checkpoint(name: str) -> Path | None:
    """Where the `config.json` of a checkpoint of ours lies: a folder, or the Hub's cache; None for other networks."""
    if Path(name).is_dir():
        return Path(name)
    if not name.startswith("hf-hub:"):
        return None
    repo, _, revision = name.removeprefix("hf-hub:").partition("@")
    try:
        return download_config(repo, revision or None)
    except EagleEyeError:  # one of timm's own, or none, which opening it tells
        return None
