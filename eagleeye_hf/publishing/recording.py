"""What it takes to build a network again, as the `config.json` of its checkpoint."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import timm
from timm.layers import SelectAdaptivePool2d
from torch import nn

from eagleeye_hf.channels.removal import is_removed
from eagleeye_hf.channels.resizing import remove_modules, removed_modules
from eagleeye_hf.errors import EagleEyeError
from eagleeye_hf.networks.description import describe_input
from eagleeye_hf.publishing.config import ARCHITECTURE, base_args, check_config, clean_pretrained_cfg
from eagleeye_hf.publishing.confirmation import find_differences
from eagleeye_hf.publishing.rebuild import apply_sizes, build_empty, changed_sizes

FUSING = ("fuse", "reparameterize", "switch_to_deploy")
"""Methods of modules that `timm.utils.reparameterize_model` calls."""

REMEDY = (
    "Save a network whose modules are those of timm's, sliced or not, or register its architecture with timm first "
    "(`timm.models.register_model`)"
)


def build_config(
    model: nn.Module, label_names: Sequence[str] | None = None, provenance: Mapping[str, Any] | None = None
) -> tuple[dict[str, Any], nn.Module]:
    """The `config.json` of a pruned network, in timm's layout.

    Returns:
        The config, as it is read back; and the network that it describes, its parameters without values.
    Raises:
        EagleEyeError: the model can't be rebuilt from a timm architecture, or the config could not be read back.
    """
    cfg = dict(getattr(model, "pretrained_cfg", None) or {})
    arguments = dict(getattr(model, "_model_args", {}))
    base, fused = cfg.get("architecture"), False
    in_chans = int(arguments.get("in_chans") or describe_input(model)[0])
    if base == ARCHITECTURE:  # loaded by timm from a checkpoint of ours
        base, fused, arguments = arguments.get("base"), arguments.get("fused", False), base_args(arguments)
    if not base or not timm.is_model(base):
        raise EagleEyeError(
            f"`model` ({type(model).__name__}) was not made by `timm.create_model`, so no loader could rebuild it; "
            "register its architecture with timm first (`timm.models.register_model`)"
        )
    num_classes = _count_outputs(model, cfg)
    arguments = {key: value for key, value in arguments.items() if key not in ("num_classes", "in_chans")}
    shape = {"num_classes": num_classes, "in_chans": in_chans}
    full = build_empty(base, arguments, fused, **shape)
    pool = _changed_pool(full, model)
    if pool is not None:
        arguments["global_pool"] = pool
        full = build_empty(base, arguments, fused, **shape)
    if not fused and _is_fused(full, model):
        fused, full = True, build_empty(base, arguments, True, **shape)
    removed, sizes, rebuilt = _find_sizes(full, model, base)
    pretrained_cfg = clean_pretrained_cfg(cfg) | {"num_classes": num_classes}
    if "input_size" in pretrained_cfg:
        pretrained_cfg["input_size"] = (in_chans, *pretrained_cfg["input_size"][1:])
    model_args: dict[str, Any] = {"base": base, "sizes": sizes}
    model_args |= {"base_args": arguments} if arguments else {}
    model_args |= {"removed_blocks": removed} if removed else {}
    model_args |= {"fused": True} if fused else {}
    model_args |= {"in_chans": in_chans} if in_chans != 3 else {}
    config: dict[str, Any] = {
        "architecture": ARCHITECTURE,
        "num_classes": num_classes,
        "num_features": int(getattr(model, "num_features", 0)),
        "model_args": model_args,
        "pretrained_cfg": pretrained_cfg,
        "image_processor_type": "TimmWrapperImageProcessor",
        "eagleeye": dict(provenance or {}),
    }
    if label_names is None and len(cfg.get("label_names") or ()) == num_classes:
        label_names = cfg.get("label_names")  # of the checkpoint that the model came from
    if label_names:
        if len(label_names) != num_classes:
            raise EagleEyeError(f"`label_names` has {len(label_names)} names for {num_classes} outputs")
        config["label_names"] = list(label_names)
    return as_read(config), rebuilt


def as_read(config: Mapping[str, Any]) -> dict[str, Any]:
    """What reading the file would give; refused where it would be refused."""
    try:
        written = json.loads(json.dumps(_without_nan(config)))
    except (TypeError, ValueError) as error:
        raise EagleEyeError(f"`provenance` can't be written as JSON: {error}") from error
    check_config(json.loads(json.dumps(written)))
    return written


def _without_nan(value: Any) -> Any:
    """The value with null where a number is not finite, for which JSON has no word."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _without_nan(inner) for key, inner in value.items()}
    return [_without_nan(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def _count_outputs(model: Any, cfg: Mapping[str, Any]) -> int:
    """Outputs of the classifier, whatever was told when the network was made; 0 where there is none."""
    classifier = model.get_classifier() if hasattr(model, "get_classifier") else None
    if isinstance(classifier, nn.Linear):
        return classifier.out_features
    if isinstance(classifier, nn.Conv2d):
        return classifier.out_channels
    if isinstance(classifier, nn.Identity):
        return 0
    return int(getattr(model, "num_classes", cfg.get("num_classes") or 0))


def _changed_pool(full: nn.Module, model: nn.Module) -> str | None:
    """The pooling that the network changed to (`reset_classifier`); None where it is the base's own."""
    mine, theirs = _pools(model), _pools(full)
    changed = {pool for name, pool in mine.items() if theirs.get(name, pool) != pool}
    return changed.pop() if len(changed) == 1 else None


def _pools(model: nn.Module) -> dict[str, str]:
    pools = {name: m.pool_type for name, m in model.named_modules() if isinstance(m, SelectAdaptivePool2d)}
    told = getattr(model, "global_pool", None)
    return pools | ({"": told} if isinstance(told, str) else {})


def _is_fused(full: nn.Module, model: nn.Module) -> bool:
    """Whether the network has other modules than its base, which could be the base's own, merged."""
    can_fuse = any(hasattr(module, name) for module in full.modules() for name in FUSING)
    removed = removed_modules(full, model)
    return can_fuse and {name for name in full.state_dict() if not is_removed(name, removed)} != set(model.state_dict())


def _without_stale(sizes: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Sizes but for what a network was told when it was made, which a first or last layer put in by hand outlives."""
    stale = {name: {"num_classes"} | ({"in_chans"} if not name else set()) for name in sizes}
    kept = {name: {k: v for k, v in changes.items() if k not in stale[name]} for name, changes in sizes.items()}
    return {name: changes for name, changes in kept.items() if changes}


def _find_sizes(full: nn.Module, model: nn.Module, base: str) -> tuple[list[str], dict[str, Any], nn.Module]:
    try:
        return match_sizes(full, model)
    except ValueError as error:
        raise EagleEyeError(f"`model` can't be rebuilt from timm's {base}: {error}. {REMEDY}") from error


def match_sizes(full: nn.Module, model: nn.Module) -> tuple[list[str], dict[str, Any], nn.Module]:
    """The blocks without which, and the sizes with which, the full network is `model`; and it, made so in place.

    Raises:
        ValueError: it was not cut from that network; says what would differ.
    """
    removed = removed_modules(full, model)
    remove_modules(full, removed)
    sizes = json.loads(json.dumps(_without_stale(changed_sizes(full, model))))
    rebuilt = apply_sizes(full, sizes)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in rebuilt.state_dict().items()}
    if expected != found:
        different = sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))
        modules = "; ".join(islice(find_differences(model, rebuilt), 3))
        raise ValueError(f"{', '.join(different[:5])} would differ{f' ({modules})' if modules else ''}")
    return removed, sizes, rebuilt
