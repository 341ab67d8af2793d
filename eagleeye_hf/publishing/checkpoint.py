"""Save a pruned network as a folder that timm, transformers and this package load; load one."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
from torch import nn

from eagleeye_hf.errors import EagleEyeError
from eagleeye_hf.networks.description import unwrap_model
from eagleeye_hf.publishing.config import (
    ARCHITECTURE,
    CARD,
    CONFIG,
    WEIGHTS,
    base_args,
    clean_pretrained_cfg,
    read_config,
)
from eagleeye_hf.publishing.download import download_checkpoint
from eagleeye_hf.publishing.rebuild import apply_sizes, build_empty, changed_sizes
from eagleeye_hf.publishing.weights import load_weights, save_weights


def save_pretrained(
    model: nn.Module,
    folder: str | Path,
    *,
    label_names: Sequence[str] | None = None,
    provenance: Mapping[str, Any] | None = None,
    card: str | None = None,
) -> Path:
    """Write `model.safetensors`, `config.json` and, where given, the model card.

    All files are written before any is renamed to its place, `config.json` last: a folder that has it is whole.

    Args:
        model: a network of timm, pruned by `slice_model` or not.
        folder: must not hold a checkpoint yet.
        label_names: class names, one per output.
        provenance: facts about how the model was made, kept in the `eagleeye` block of `config.json`.
        card: text of the model card, from `write_card`.
    Raises:
        EagleEyeError: the folder holds a checkpoint, or the model can't be rebuilt from a timm architecture.
    """
    folder, model = Path(folder), unwrap_model(model)
    check_free(folder)
    config = build_config(model, label_names, provenance)
    folder.mkdir(parents=True, exist_ok=True)
    texts = {CARD: card, CONFIG: json.dumps(config, indent=2)}
    names = [WEIGHTS, *(name for name, text in texts.items() if text is not None)]
    parts = [folder / (name + ".tmp") for name in names]
    try:
        save_weights(model, parts[0])
        for name, part in zip(names[1:], parts[1:], strict=True):
            part.write_text(texts[name] or "", encoding="utf-8")
        for name, part in zip(names, parts, strict=True):
            os.replace(part, folder / name)
    finally:
        for part in parts:
            part.unlink(missing_ok=True)
    return folder


def check_free(folder: Path) -> None:
    """Refuse a folder that holds a checkpoint already, or that is a file."""
    if folder.exists() and not folder.is_dir():
        raise EagleEyeError(f"`folder={folder}` is a file; give a folder")
    if (folder / CONFIG).exists() or (folder / WEIGHTS).exists():
        raise EagleEyeError(f"`folder={folder}` holds a checkpoint already; choose another, or move that away")


def build_config(
    model: nn.Module, label_names: Sequence[str] | None = None, provenance: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The `config.json` of a pruned network, in timm's layout."""
    cfg = dict(getattr(model, "pretrained_cfg", None) or {})
    arguments = dict(getattr(model, "_model_args", {}))
    base = cfg.get("architecture")
    in_chans = int(arguments.get("in_chans") or (cfg.get("input_size") or (3,))[0])
    if base == ARCHITECTURE:  # loaded by timm from a checkpoint of ours
        base, arguments = arguments.get("base"), base_args(arguments)
    if not base or not timm.is_model(base):
        raise EagleEyeError(
            f"`model` ({type(model).__name__}) was not made by `timm.create_model`, so no loader could rebuild it; "
            "register its architecture with timm first (`timm.models.register_model`)"
        )
    num_classes = int(getattr(model, "num_classes", cfg.get("num_classes") or 0))
    arguments = {key: value for key, value in arguments.items() if key not in ("num_classes", "in_chans")}
    full = build_empty(base, arguments, num_classes=num_classes, in_chans=in_chans)
    sizes = changed_sizes(full, model)
    rebuilt = apply_sizes(full, json.loads(json.dumps(sizes)))
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in rebuilt.state_dict().items()}
    if expected != found:
        different = sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))
        raise EagleEyeError(
            f"`model` can't be rebuilt from timm's {base}: {', '.join(different[:5])} would differ; "
            "save a model that `slice_model` made"
        )
    pretrained_cfg = clean_pretrained_cfg(cfg) | {"num_classes": num_classes}
    if "input_size" in pretrained_cfg:
        pretrained_cfg["input_size"] = (in_chans, *pretrained_cfg["input_size"][1:])
    config: dict[str, Any] = {
        "architecture": ARCHITECTURE,
        "num_classes": num_classes,
        "num_features": int(getattr(model, "num_features", 0)),
        "model_args": {"base": base, "sizes": sizes} | ({"base_args": arguments} if arguments else {}),
        "pretrained_cfg": pretrained_cfg,
        "image_processor_type": "TimmWrapperImageProcessor",
        "eagleeye": dict(provenance or {}),
    }
    if in_chans != 3:
        config["model_args"]["in_chans"] = in_chans
    if label_names is None and len(cfg.get("label_names") or ()) == num_classes:
        label_names = cfg.get("label_names")  # of the checkpoint that the model came from
    if label_names:
        if len(label_names) != num_classes:
            raise EagleEyeError(f"`label_names` has {len(label_names)} names for {num_classes} outputs")
        config["label_names"] = list(label_names)
    return config


def from_pretrained(
    path_or_repo: str | Path,
    revision: str | None = None,
    *,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
) -> nn.Module:
    """Load a pruned network from a folder or a Hub repo, in eval mode.

    Nothing from the checkpoint is run or unpickled: sizes are checked against the base architecture, then tensors
    against the sizes.

    Raises:
        EagleEyeError: there is no checkpoint, or it is damaged, or its tensors don't fit its `config.json`.
    """
    folder = Path(path_or_repo)
    if not folder.is_dir():
        folder = download_checkpoint(str(path_or_repo), revision, token, cache_dir)
    config = read_config(folder)
    arguments = config["model_args"]
    shape = {"num_classes": config["num_classes"], "in_chans": arguments.get("in_chans", 3)}
    model = build_empty(arguments["base"], base_args(arguments), **shape)
    load_weights(apply_sizes(model, arguments.get("sizes", {})), folder)
    cfg = {**getattr(model, "pretrained_cfg", {}), **config["pretrained_cfg"], "num_classes": config["num_classes"]}
    model.pretrained_cfg = model.default_cfg = cfg | {  # type: ignore[assignment]
        "architecture": arguments["base"],
        "label_names": config["label_names"],
    }
    return model.eval()


def state_bytes(model: nn.Module) -> int:
    """Bytes of a network's tensors: the size of its file, but for the header."""
    return sum(tensor.nbytes for tensor in model.state_dict().values())


def weights_size(folder: Path) -> int:
    """Bytes of the saved weights."""
    return (folder / WEIGHTS).stat().st_size
