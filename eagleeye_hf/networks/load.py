"""Trained networks of timm: by name, with their weights from the Hub or a file."""

from __future__ import annotations

import argparse
import difflib
import errno
import math
import pickle
from collections.abc import Mapping
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from eagleeye_hf.configs import flat_items
from eagleeye_hf.errors import EagleEyeError
from eagleeye_hf.networks.config import InputConfig
from eagleeye_hf.networks.description import describe_model

CONTAINERS = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model")
"""Where training scripts keep the weights in their checkpoints; averaged ones first, as in timm."""
PREFIXES = ("module.", "_orig_mod.", "model.", "timm_model.", "backbone.")
"""What wrappers put before the names of all weights."""
PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
"""How files of `torch.save` begin: its archive, and its older form."""


def check_name(name: str) -> None:
    """Refuse what neither timm nor the Hub can know."""
    if not timm.is_model(name.split(".")[0]) and ":" not in name:
        if "/" in name or name.startswith((".", "~")):
            hub = f"hf-hub:{name.lstrip('./~')}"
            raise EagleEyeError(f"`model={name}`: there is no such folder; for one on the Hub write {hub}")
        close = difflib.get_close_matches(name.split(".")[0], timm.list_models(), n=4)
        rest = f"; did you mean {', '.join(close)}" if close else ", and there is no folder of that name"
        raise EagleEyeError(f"`model={name}` is no model of timm{rest}")


def load_pretrained(name: str, **options: Any) -> nn.Module:
    """A network with the weights that timm finds for it.

    Args:
        options: for timm's `create_model`.
    Raises:
        EagleEyeError: the name is unknown, or the weights can't be had.
    """
    check_name(name)
    try:
        return timm.create_model(name, pretrained=True, **options)
    except Exception as error:  # timm and the Hub raise many kinds
        if str(error).startswith("No pretrained weights exist"):
            raise EagleEyeError(
                f"`model={name}`: timm has no trained weights for it; give a file with `weights`"
            ) from error
        full = isinstance(error, OSError) and error.errno == errno.ENOSPC
        remedy = "free some space, or put the cache elsewhere with HF_HOME" if full else "check the connection"
        raise EagleEyeError(
            f"`model={name}`: its trained weights can't be loaded ({_first_line(error)}); {remedy}, or give a file "
            "with `weights`"
        ) from error


def load_from_file(name: str, weights: str) -> nn.Module:
    """A network with the weights of a file; it has as many classes and input channels as these.

    Args:
        weights: safetensors, or what `torch.save` made of a `state_dict` or of a training script's checkpoint.
    Raises:
        EagleEyeError: the name is unknown, or the file is damaged, holds more than tensors, or doesn't fit.
    """
    check_name(name)
    state = read_weights(weights)
    model = _create(name)
    sizes = _sizes_in(state, model)
    if sizes:
        model = _create(name, **sizes)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise EagleEyeError(
            f"`weights={weights}` does not fit `model={name}`: {' '.join(str(error).split())[:300]}; "
            "give the model that these weights were trained as"
        ) from error
    return model


def read_weights(weights: str) -> dict[str, Tensor]:
    """The tensors of a file under their names in the network, out of what training scripts wrap around them.

    Raises:
        EagleEyeError: the file is not there, damaged, or holds no weights.
    """
    try:
        with open(weights, "rb") as file:
            beginning = file.read(4)
    except OSError as error:
        raise EagleEyeError(
            f"`weights={weights}` can't be read ({error.strerror}); give a file of safetensors or of `torch.save`"
        ) from error
    if beginning.startswith(PICKLES):
        return _bare(_find_state(weights, _unpickle(weights)))
    try:
        return _bare(load_file(weights))
    except (SafetensorError, OSError) as error:
        raise EagleEyeError(
            f"`weights={weights}` can't be read as safetensors ({_first_line(error)}), and it is no file of "
            "`torch.save`; give a whole file of one of the two kinds"
        ) from error


def _unpickle(weights: str) -> Any:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # timm's training script saves its options
            return torch.load(weights, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise EagleEyeError(
            f"`weights={weights}` holds more than tensors, a whole network perhaps, and reading that could run any "
            "code; save its weights alone, `safetensors.torch.save_file(model.state_dict(), FILE)`, where you trust it"
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        raise EagleEyeError(
            f"`weights={weights}` is a damaged file of `torch.save` ({_first_line(error)}); get it anew"
        ) from error


def _find_state(weights: str, loaded: Any) -> dict[str, Tensor]:
    """The weights in a checkpoint, which may keep them in one of its parts."""
    found = loaded
    while isinstance(found, Mapping) and not _is_state(found):
        found = next((found[key] for key in CONTAINERS if isinstance(found.get(key), Mapping)), None)
    if found is None or not _is_state(found):
        parts = ", ".join(map(str, list(loaded)[:8])) or "nothing" if isinstance(loaded, Mapping) else ""
        raise EagleEyeError(
            f"`weights={weights}` has no weights where they are looked for ({', '.join(CONTAINERS)}); "
            f"it holds {parts or f'a {type(loaded).__name__}'}. Save the `state_dict` alone"
        )
    return dict(found)


def _is_state(found: Any) -> bool:
    named = isinstance(found, Mapping) and len(found) > 0
    return named and all(isinstance(key, str) and isinstance(value, Tensor) for key, value in found.items())


def _bare(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the prefixes that all names have, and without the counter of `AveragedModel`."""
    state = {key: value for key, value in state.items() if key != "n_averaged"}
    while prefix := next((prefix for prefix in PREFIXES if all(key.startswith(prefix) for key in state)), ""):
        if not state:
            break
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def adjust_input(model: nn.Module, given: InputConfig) -> nn.Module:
    """Let a network say what its images are like.

    Raises:
        EagleEyeError: it is built for images of another size, or of other channels.
    """
    known = describe_model(model)
    config = dict(getattr(model, "pretrained_cfg", None) or {})
    told = {name: value for name, value in flat_items(given) if value is not None}
    if not told:
        return model
    if given.in_chans not in (None, known.channels):
        raise EagleEyeError(
            f"`in_chans={given.in_chans}`, but the network reads images of {known.channels} channels; leave it out, or "
            "give weights that were trained so"
        )
    if config.get("fixed_input_size") and given.image_size not in (None, *known.image_size):
        raise EagleEyeError(
            f"`image_size={given.image_size}`, but this network is built for {known.image_size[0]} px; leave it out"
        )
    for name in ("mean", "std"):
        if name in told:
            values = tuple(told[name])
            told[name] = values * known.channels if len(values) == 1 else values
            if len(told[name]) != known.channels:
                raise EagleEyeError(
                    f"`{name}` has {len(values)} numbers, but the network reads images of {known.channels} channels; "
                    "give one, or one per channel"
                )
    size = told.pop("image_size", None)
    if size is not None:
        told["input_size"] = (known.channels, size, size)
        if config.get("pool_size"):  # the last feature map, which timm's pooling at test time goes by
            maps = zip(config["pool_size"], known.image_size, strict=True)
            told["pool_size"] = tuple(math.ceil(size * side / pixels) for side, pixels in maps)
        config.pop("test_input_size", None)
    told.pop("in_chans", None)
    model.pretrained_cfg = model.default_cfg = config | told  # type: ignore[assignment]
    return model


def _create(name: str, **sizes: Any) -> nn.Module:
    try:
        return timm.create_model(name, **sizes)
    except Exception as error:  # timm and the Hub raise many kinds
        raise EagleEyeError(f"`model={name}` can't be built ({_first_line(error)})") from error


def _sizes_in(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, int]:
    """Classes and input channels of trained weights, where they differ from the network's."""
    config: Any = getattr(model, "pretrained_cfg", None) or {}
    own, sizes = dict(model.named_parameters()), {}
    for key in _weights_of(config.get("classifier"), own, state)[:1]:
        if len(state[key]) != len(own[key]):
            sizes["num_classes"] = len(state[key])
    first = _weights_of(config.get("first_conv"), own, state)
    for key in [key for key in first if state[key].ndim > 2 and own[key].ndim > 2][:1]:
        told = (config.get("input_size") or (3,))[0]
        channels = state[key].shape[1] * told / own[key].shape[1]  # a stem may fold pixels into channels
        if channels != told and channels.is_integer():
            sizes["in_chans"] = int(channels)
    return sizes


def _weights_of(names: Any, own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    names = [names] if isinstance(names, str) else list(names or ())
    return [key for key in (f"{name}.weight" for name in names) if key in own and key in state]


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
