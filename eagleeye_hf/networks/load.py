"""Trained networks of timm: by name, with their weights from the Hub or a file."""

from __future__ import annotations

import difflib

import timm
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn

from eagleeye_hf.errors import EagleEyeError


def check_name(name: str) -> None:
    """Refuse what neither timm nor the Hub can know."""
    if not timm.is_model(name.split(".")[0]) and ":" not in name:
        close = difflib.get_close_matches(name.split(".")[0], timm.list_models(), n=4)
        raise EagleEyeError(
            f"`model={name}` is no model of timm{'; did you mean ' + ', '.join(close) if close else ''}"
        )


def load_pretrained(name: str) -> nn.Module:
    """A network with the weights that timm finds for it.

    Raises:
        EagleEyeError: the name is unknown, or the weights can't be had.
    """
    check_name(name)
    try:
        return timm.create_model(name, pretrained=True)
    except Exception as error:  # timm and the Hub raise many kinds
        raise EagleEyeError(
            f"`model={name}`: its trained weights can't be loaded "
            f"({type(error).__name__}: {str(error).splitlines()[0]}); "
            "check the connection, or give a file with `weights`"
        ) from error


def load_from_file(name: str, weights: str) -> nn.Module:
    """A network with the weights of a safetensors file; its classifier is as large as the file's.

    Raises:
        EagleEyeError: the name is unknown, or the file is damaged or doesn't fit.
    """
    check_name(name)
    try:
        with safe_open(weights, "pt") as file:
            shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise EagleEyeError(f"`weights={weights}` can't be read as safetensors: {error}") from error
    classifier = timm.get_pretrained_cfg_value(name, "classifier") or "classifier"
    classifier = classifier[0] if isinstance(classifier, (tuple, list)) else classifier
    outputs = shapes.get(f"{classifier}.weight", [None])[0]
    model = timm.create_model(name, **({"num_classes": outputs} if outputs else {}))
    try:
        model.load_state_dict(load_file(weights))
    except RuntimeError as error:
        raise EagleEyeError(
            f"`weights={weights}` does not fit `model={name}`: {' '.join(str(error).split())[:300]}"
        ) from error
    return model
