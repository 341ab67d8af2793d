"""What `config.json` may say. A checkpoint comes from strangers: every value is checked before anything is built."""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import timm

from eagleeye_hf.errors import EagleEyeError

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
ARCHITECTURE = "eagleeye_pruned"
BUILDER = "builder"
"""In `model_args`: what built a network that timm does not know. It is told, not called."""

MAX_CONFIG_BYTES = 16 << 20
MAX_BLOCKS = 1000
MAX_CLASSES, MAX_CHANNELS, MAX_PIXELS, MAX_FEATURES = 100_000, 1024, 1024, 1 << 20
"""Of outputs, input channels, (where a network is built for one) image size and features; beyond what networks have."""

Check = Callable[[Any], bool]


def is_count(low: int, high: int) -> Check:
    return lambda value: type(value) is int and low <= value <= high


def is_number(low: float, high: float) -> Check:
    return lambda value: type(value) in (int, float) and low <= value <= high


def is_text(pattern: str) -> Check:
    return lambda value: isinstance(value, str) and re.fullmatch(pattern, value) is not None


def is_list(item: Check, *lengths: int) -> Check:
    return lambda value: isinstance(value, (list, tuple)) and len(value) in lengths and all(map(item, value))


def is_any(*checks: Check) -> Check:
    return lambda value: any(check(value) for check in checks)


def is_flag(value: Any) -> bool:
    return isinstance(value, bool)


WORD = is_text(r"[\w-]{0,64}")
NAMES = is_text(r"[\w.-]{1,256}")
SHARE = is_number(0, 0.999)
PIXELS = is_any(is_count(1, MAX_PIXELS), is_list(is_count(1, MAX_PIXELS), 2))

BASE_ARGS: Mapping[str, Check] = {
    "act_layer": WORD,
    "aa_layer": WORD,
    "attn_drop_rate": SHARE,
    "drop_block_rate": SHARE,
    "drop_path_rate": SHARE,
    "drop_rate": SHARE,
    "global_pool": WORD,
    "img_size": PIXELS,
    "inference_mode": is_flag,
    "norm_layer": WORD,
    "output_stride": is_any(*(is_count(stride, stride) for stride in (2, 4, 8, 16, 32))),
    "proj_drop_rate": SHARE,
}
"""Arguments of the base architecture that a checkpoint may carry; nothing that names a file or scales a network."""

PRETRAINED_CFG: Mapping[str, Check] = {
    "input_size": lambda v: is_list(is_count(1, 4096), 3)(v) and v[0] <= MAX_CHANNELS,
    "fixed_input_size": is_flag,
    "interpolation": WORD,
    "crop_pct": is_number(0.01, 10),
    "crop_mode": WORD,
    "mean": is_list(is_number(-1e6, 1e6), *range(1, MAX_CHANNELS + 1)),
    "std": is_list(is_number(-1e6, 1e6), *range(1, MAX_CHANNELS + 1)),
    "pool_size": is_list(is_count(1, 1 << 16), 2),
    "first_conv": is_any(NAMES, is_list(NAMES, *range(9))),
    "classifier": is_any(NAMES, is_list(NAMES, *range(9))),
    "license": is_text(r"[\w.+-]{1,64}"),
}
"""What timm tells about a checkpoint's inputs and head, and what of it is kept."""


def read_config(folder: Path) -> dict[str, Any]:
    """The checked `config.json` of a checkpoint folder; the sizes are checked against the base when it is built.

    Raises:
        EagleEyeError: there is none, or a value in it is not one that `save_pretrained` could have written.
    """
    path = folder / CONFIG
    if not path.is_file():
        what = f"has no {CONFIG}: it is no checkpoint, or an unfinished one" if folder.is_dir() else "is no folder"
        raise EagleEyeError(f"{folder} {what}; give the folder that a run has written")
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise EagleEyeError(f"{path} is larger than {MAX_CONFIG_BYTES >> 20} MiB, which no checkpoint needs")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise EagleEyeError(f"{path} can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise EagleEyeError(f"{path} is not JSON in UTF-8 (byte {error.start})") from error
    except (ValueError, RecursionError) as error:
        raise EagleEyeError(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict) or config.get("architecture") != ARCHITECTURE:
        raise EagleEyeError(
            f"{path} is not of a pruned network (`architecture` is not {ARCHITECTURE}); load it with timm"
        )
    if not isinstance(config.get("model_args"), dict):
        raise EagleEyeError(f"{path} has no `model_args`; the checkpoint is damaged")
    try:
        return check_config(config)
    except EagleEyeError as error:
        raise EagleEyeError(f"{path}: {error}") from error


def check_config(config: dict[str, Any]) -> dict[str, Any]:
    """The config with what may be missing filled in, and without what is not kept."""
    check_model_args(config["model_args"])
    check_num_classes(config.get("num_classes"))
    _check("num_features", config.get("num_features", 0), is_count(0, MAX_FEATURES))
    cfg = config.get("pretrained_cfg", {})
    _check("pretrained_cfg", cfg, lambda value: isinstance(value, dict))
    config["pretrained_cfg"] = clean_pretrained_cfg(cfg)
    names = config.setdefault("label_names", None)
    _check("label_names", names, lambda v: v is None or is_list(lambda n: isinstance(n, str), config["num_classes"])(v))
    _check("eagleeye", config.setdefault("eagleeye", {}), lambda value: isinstance(value, dict))
    return config


def check_model_args(arguments: Mapping[str, Any]) -> None:
    """Refuse all but a known base, arguments that are safe to give it, and sizes (checked when they are applied)."""
    if BUILDER in arguments:
        _check(BUILDER, arguments[BUILDER], lambda value: isinstance(value, str) and len(value) <= 256)
        _check("model_args", sorted(arguments), lambda names: set(names) <= {BUILDER, "sizes", "removed_blocks"})
        _check("removed_blocks", arguments.get("removed_blocks", []), is_list(NAMES, *range(MAX_BLOCKS)))
        return
    check_base(arguments.get("base"))
    check_base_args(arguments.get("base_args", {}))
    _check("in_chans", arguments.get("in_chans", 3), is_count(1, MAX_CHANNELS))
    _check("fused", arguments.get("fused", False), is_flag)
    _check("removed_blocks", arguments.get("removed_blocks", []), is_list(NAMES, *range(MAX_BLOCKS)))
    for key in set(arguments) - {
        "base",
        "base_args",
        "fused",
        "sizes",
        "in_chans",
        "removed_blocks",
    }:  # timm's own `save_for_hf` adds some
        if key != "num_classes" and key not in BASE_ARGS:
            raise EagleEyeError(f"`model_args` has {reprlib.repr(key)}, which no checkpoint of ours has")
        _check(key, arguments[key], BASE_ARGS.get(key, is_count(0, MAX_CLASSES)))


def base_args(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What the base architecture is built with."""
    return {**arguments.get("base_args", {}), **{key: arguments[key] for key in BASE_ARGS if key in arguments}}


def check_num_classes(value: Any) -> None:
    _check("num_classes", value, is_count(0, MAX_CLASSES))


def check_base(base: Any) -> None:
    if not isinstance(base, str) or base == ARCHITECTURE or not timm.is_model(base):
        raise EagleEyeError(
            f"`base={reprlib.repr(base)}` is no architecture of timm {timm.__version__}; config.json is damaged, or "
            "needs another timm"
        )


def check_base_args(arguments: Any) -> None:
    """Refuse arguments of the base network that are not on the list, or not in range."""
    _check("base_args", arguments, lambda value: isinstance(value, dict))
    for key, value in arguments.items():
        if key not in BASE_ARGS:
            raise EagleEyeError(
                f"`base_args` has {reprlib.repr(key)}; a checkpoint can only carry {', '.join(BASE_ARGS)}"
            )
        _check(key, value, BASE_ARGS[key])


def clean_pretrained_cfg(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """The entries that are kept, checked; where weights lie, and whatever else there is, is left out."""
    kept = {key: cfg[key] for key in PRETRAINED_CFG if cfg.get(key) is not None}
    for key, value in kept.items():
        _check(key, value, PRETRAINED_CFG[key])
    if kept.get("fixed_input_size"):  # the network is built for that size
        _check("input_size", kept.get("input_size"), is_list(is_count(1, MAX_PIXELS), 3))
    return kept


def _check(name: str, value: Any, check: Check) -> None:
    if not check(value):
        raise EagleEyeError(f"`{name}={reprlib.repr(value)}` can't be in the config.json of a checkpoint")
