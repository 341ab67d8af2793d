"""`eagleeye_pruned`: how timm, and through it transformers, builds a pruned network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from timm.models import build_model_with_cfg
from timm.models._features import FeatureGetterNet, FeatureHookNet
from torch import nn

from eagleeye_hf.errors import EagleEyeError
from eagleeye_hf.publishing.awaited import await_tensors
from eagleeye_hf.publishing.claims import check_claims, rebuild_empty
from eagleeye_hf.publishing.config import (
    ARCHITECTURE,
    BUILDER,
    WEIGHTS,
    base_args,
    check_model_args,
    check_num_classes,
    clean_pretrained_cfg,
)
from eagleeye_hf.publishing.download import download_weights
from eagleeye_hf.publishing.rebuild import build_empty, build_lean, build_thin
from eagleeye_hf.publishing.weights import check_weights

SAVED_ARGS = ("base", "base_args", "fused", "sizes", "removed_blocks", "in_chans")


def build_pruned(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """A pruned network for timm's register, which calls it `eagleeye_pruned`.

    It is built without values first: what the config says, and the header of the weights where they are known, is
    compared with that before memory is spent.

    Args:
        kwargs: `base`, `sizes` and so on of the checkpoint's `model_args`, and what timm gives beside them.
    """
    if BUILDER in kwargs:
        raise EagleEyeError(
            f"this checkpoint is of a network that timm does not know, which `{kwargs[BUILDER]}` built: load it with "
            "`eagleeye_hf.from_pretrained(FOLDER, builder=...)`"
        )
    if "base" not in kwargs:
        raise EagleEyeError(f"`{ARCHITECTURE}` is built from a checkpoint: timm.create_model('local-dir:FOLDER')")
    saved = kwargs.get("pretrained_model_args") or {k: kwargs[k] for k in SAVED_ARGS if k in kwargs}
    check_model_args(saved)
    cfg: dict[str, Any] = {}
    if kwargs.get("pretrained_cfg"):
        kwargs["pretrained_cfg"] = cfg = _safe_cfg(dict(kwargs["pretrained_cfg"]))
    num_classes = cfg.get("num_classes", kwargs.get("num_classes", 0))
    check_num_classes(num_classes)
    empty = rebuild_empty(saved, num_classes)
    folder = _weights_folder(cfg, pretrained, kwargs.get("cache_dir"))
    if folder is not None:
        check_weights(empty, folder)
    check_claims(empty, saved, cfg, num_classes)
    features_only, out_indices = kwargs.pop("features_only", False), kwargs.pop("out_indices", None)
    model = build_model_with_cfg(build_lean if pretrained else build_thin, ARCHITECTURE, pretrained, **kwargs)
    if not cfg and torch.get_default_device().type == "meta":  # transformers, which loads the weights afterwards
        await_tensors(model)
    return _feature_net(model, kwargs, out_indices) if features_only else model


def _weights_folder(cfg: Mapping[str, Any], pretrained: bool, cache_dir: str | Path | None) -> Path | None:
    """Where the weights of a folder, or of a Hub repo that will be loaded, lie."""
    if cfg.get("source") == "local-dir":
        return Path(cfg["file"])
    if cfg.get("source") == "hf-hub" and pretrained:
        repo, _, revision = str(cfg["hf_hub_id"]).partition("@")
        return download_weights(repo, revision or None, cache_dir=cache_dir)
    return None


def _safe_cfg(cfg: dict[str, Any]) -> dict[str, Any]:
    """What `config.json` says about inputs and head, with the weights' place as timm's loader set it, no other."""
    place = {key: cfg[key] for key in ("source", "file", "hf_hub_id") if cfg.get(key)}
    if place.get("source") == "local-dir" and not (Path(place["file"]) / WEIGHTS).is_file():
        raise EagleEyeError(f"{place['file']} has no {WEIGHTS}; the checkpoint is damaged")
    check_num_classes(cfg.get("num_classes", 0))
    kept = {key: cfg[key] for key in ("num_classes", "label_names") if cfg.get(key) is not None}
    return {**clean_pretrained_cfg(cfg), **kept, **place, "hf_hub_filename": WEIGHTS, "architecture": ARCHITECTURE}


def _feature_net(model: Any, arguments: dict[str, Any], out_indices: Sequence[int] | int | None) -> nn.Module:
    """The stages of the network, by default those that timm gives for its base."""
    if hasattr(model, "forward_intermediates"):
        if out_indices is None:
            base: Any = build_empty(arguments["base"], base_args(arguments), features_only=True)
            out_indices = tuple(base.feature_info.out_indices)
        features = FeatureGetterNet(model, out_indices=out_indices)
    else:
        features = FeatureHookNet(
            model, out_indices=range(len(model.feature_info)) if out_indices is None else out_indices
        )
    features.pretrained_cfg = features.default_cfg = model.pretrained_cfg
    return features
