"""Save a pruned network as a folder that timm, transformers and this package load; load one."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from timm.models import get_pretrained_cfg
from torch import nn

from eagleeye_hf.errors import EagleEyeError
from eagleeye_hf.publishing.rebuild import apply_sizes, build_thin, changed_sizes

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
CFG_KEYS = (
    "input_size",
    "fixed_input_size",
    "interpolation",
    "crop_pct",
    "crop_mode",
    "mean",
    "std",
    "pool_size",
    "first_conv",
    "classifier",
    "license",
)


def save_pretrained(
    model: nn.Module,
    folder: str | Path,
    *,
    label_names: Sequence[str] | None = None,
    provenance: Mapping[str, Any] | None = None,
    card: str | None = None,
) -> Path:
    """Write `model.safetensors`, `config.json` and, where given, the model card.

    Every file is written beside its place and renamed; `config.json` comes last, so a folder that has it is whole.

    Args:
        model: a network of timm, pruned by `slice_model` or not.
        folder: must not hold a checkpoint yet.
        label_names: class names, one per output.
        provenance: facts about how the model was made, kept in the `eagleeye` block of `config.json`.
        card: text of the model card, from `write_card`.
    Raises:
        EagleEyeError: the folder holds a checkpoint, or the model can't be rebuilt from a timm architecture.
    """
    folder = Path(folder)
    check_free(folder)
    config = build_config(model, label_names, provenance)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / (WEIGHTS + ".tmp"), metadata={"format": "pt"})
    os.replace(folder / (WEIGHTS + ".tmp"), folder / WEIGHTS)
    for name, text in ((CARD, card), (CONFIG, json.dumps(config, indent=2))):
        if text is not None:
            (folder / (name + ".tmp")).write_text(text)
            os.replace(folder / (name + ".tmp"), folder / name)
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
    if base == "eagleeye_pruned":  # loaded by timm from a checkpoint of ours
        base, arguments = arguments.get("base"), dict(arguments.get("base_args") or {})
    if not base or not timm.is_model(base):
        raise EagleEyeError(
            f"`model` ({type(model).__name__}) was not made by `timm.create_model`, so no loader could rebuild it; "
            "register its architecture with timm first (`timm.models.register_model`)"
        )
    num_classes = int(getattr(model, "num_classes", None) or cfg.get("num_classes") or 0)
    base_args = {key: value for key, value in arguments.items() if key not in ("num_classes", "in_chans")}
    in_chans = _input_channels(model, cfg)
    full = timm.create_model(base, pretrained=False, num_classes=num_classes, in_chans=in_chans, **base_args)
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
    pretrained_cfg = {key: cfg[key] for key in CFG_KEYS if cfg.get(key) is not None} | {"num_classes": num_classes}
    config: dict[str, Any] = {
        "architecture": "eagleeye_pruned",
        "num_classes": num_classes,
        "num_features": int(getattr(model, "num_features", 0)),
        "model_args": {"base": base, "sizes": sizes} | ({"base_args": base_args} if base_args else {}),
        "pretrained_cfg": pretrained_cfg,
        "image_processor_type": "TimmWrapperImageProcessor",
        "eagleeye": dict(provenance or {}),
    }
    if in_chans != 3:
        config["model_args"]["in_chans"] = in_chans
    if label_names:
        if len(label_names) != num_classes:
            raise EagleEyeError(f"`label_names` has {len(label_names)} names for {num_classes} outputs")
        config["label_names"] = list(label_names)
    return config


def _input_channels(model: nn.Module, cfg: Mapping[str, Any]) -> int:
    """What the first convolution reads."""
    first = cfg.get("first_conv")
    first = first[0] if isinstance(first, (tuple, list)) else first
    if first:
        module = model.get_submodule(first)
        if isinstance(module, nn.Conv2d):
            channels = (cfg.get("input_size") or (3,))[0]
            full_cfg = get_pretrained_cfg(cfg.get("architecture", ""), allow_unregistered=True)
            own = (full_cfg.input_size if full_cfg else (3,))[0]
            return (
                module.in_channels * own // channels if channels != own and module.in_channels % own == 0 else channels
            )
    return int((cfg.get("input_size") or (3,))[0])


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
        try:
            folder = Path(
                snapshot_download(
                    str(path_or_repo),
                    revision=revision,
                    token=token,
                    cache_dir=cache_dir,
                    allow_patterns=[CONFIG, WEIGHTS],
                )
            )
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
            raise EagleEyeError(
                f"`path_or_repo={path_or_repo}` is neither a folder nor a Hub repo that can be read "
                f"({type(error).__name__}: {str(error).strip().splitlines()[0]})"
            ) from error
    config = read_config(folder)
    arguments = dict(config["model_args"])
    base_args = arguments.get("base_args") or {}
    try:
        model = build_thin(
            arguments.get("base", ""),
            arguments.get("sizes", {}),
            base_args,
            num_classes=config.get("num_classes"),
            in_chans=arguments.get("in_chans", 3),
        )
    except (TypeError, RuntimeError, AttributeError) as error:
        raise EagleEyeError(f"{folder / CONFIG} does not describe a model: {type(error).__name__}: {error}") from error
    _load_weights(model, folder)
    cfg = {**getattr(model, "pretrained_cfg", {}), **config.get("pretrained_cfg", {})}
    model.pretrained_cfg = model.default_cfg = cfg | {  # type: ignore[assignment]
        "architecture": arguments["base"],
        "label_names": config.get("label_names"),
    }
    return model.eval()


def read_config(folder: Path) -> dict[str, Any]:
    """The checked `config.json` of a checkpoint folder."""
    path = folder / CONFIG
    if not path.is_file():
        raise EagleEyeError(f"{folder} has no {CONFIG}: it is no checkpoint, or an unfinished one")
    if path.stat().st_size > 16 << 20:
        raise EagleEyeError(f"{path} is larger than 16 MiB, which no checkpoint needs")
    try:
        config = json.loads(path.read_text())
    except (ValueError, UnicodeDecodeError, RecursionError) as error:
        raise EagleEyeError(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict) or config.get("architecture") != "eagleeye_pruned":
        raise EagleEyeError(
            f"{path} is not of a pruned network (`architecture` is not eagleeye_pruned); load it with timm"
        )
    if not isinstance(config.get("model_args"), dict):
        raise EagleEyeError(f"{path} has no `model_args`; the checkpoint is damaged")
    return config


def _load_weights(model: nn.Module, folder: Path) -> None:
    path = folder / WEIGHTS
    if not path.is_file():
        raise EagleEyeError(f"{folder} has no {WEIGHTS}; the checkpoint is damaged")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise EagleEyeError(f"{path} is no safetensors file: {error}") from error
    expected = model.state_dict()
    problems = [f"{name} is missing" for name in expected if name not in tensors]
    problems += [f"{name} is unknown" for name in tensors if name not in expected]
    problems += [
        f"{name} has shape {tuple(tensor.shape)}, not {tuple(expected[name].shape)}"
        for name, tensor in tensors.items()
        if name in expected and tensor.shape != expected[name].shape
    ]
    if problems:
        raise EagleEyeError(f"the tensors of {path} don't fit {CONFIG}: {'; '.join(problems[:5])}")
    model.load_state_dict(tensors)


def weights_size(folder: Path) -> int:
    """Bytes of the saved weights."""
    return (folder / WEIGHTS).stat().st_size
