"""What a rebuilt network says of its channels, compared with what its tensors give, without any value computed."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from eagleeye_hf.errors import EagleEyeError
from eagleeye_hf.publishing.config import base_args
from eagleeye_hf.publishing.rebuild import apply_sizes, build_empty

Claims = dict[str, tuple[int, int]]
"""Told and found, by name."""


def rebuild_empty(arguments: Mapping[str, Any], num_classes: int) -> nn.Module:
    """The network of a config's `model_args` whose parameters have shapes but no values.

    Raises:
        EagleEyeError: timm can't build it, or a size is not one that its base has.
    """
    model = build_empty(
        arguments["base"],
        base_args(arguments),
        fused=arguments.get("fused", False),
        num_classes=num_classes,
        in_chans=arguments.get("in_chans", 3),
    )
    return apply_sizes(model, arguments.get("sizes", {}), arguments.get("removed_blocks", ()))


def find_input(model: Any, arguments: Mapping[str, Any], cfg: Mapping[str, Any]) -> tuple[int, int, int]:
    """Channels, height and width of the images that a rebuilt network is run on."""
    told = cfg.get("input_size") or (getattr(model, "pretrained_cfg", None) or {}).get("input_size") or (3, 224, 224)
    size = base_args(arguments).get("img_size") or told[1:]
    height, width = (size, size) if isinstance(size, int) else size
    return arguments.get("in_chans", 3), height, width


def check_claims(
    model: nn.Module, arguments: Mapping[str, Any], cfg: Mapping[str, Any], num_classes: int, num_features: int = 0
) -> None:
    """Run an empty network on `meta` and compare `num_features`, `head_hidden_size`, `feature_info` with the shapes.

    Args:
        model: from `rebuild_empty`; it stays as it is.
        arguments, cfg, num_classes, num_features: `model_args`, `pretrained_cfg` and so on of its config.
    Raises:
        EagleEyeError: the sizes don't fit together, or a number told is not the number of channels found there.
    """
    if num_features and num_features != getattr(model, "num_features", num_features):
        raise EagleEyeError(f"`num_features={num_features}`, but the network has {model.num_features}")
    size = find_input(model, arguments, cfg)
    try:
        claims, outputs = _measure(model, size)
    except NotImplementedError:  # an operator that has no shapes without values
        return
    except Exception as error:  # whatever a network raises on sizes that don't fit
        raise EagleEyeError(
            f"the sizes of the network don't fit together, or not an image of {' x '.join(map(str, size))} "
            f"({type(error).__name__}: {' '.join(str(error).split())[:200]})"
        ) from error
    if num_classes and outputs != num_classes:
        raise EagleEyeError(f"`num_classes={num_classes}`, but the network has {outputs} outputs")
    wrong = {name: pair for name, pair in claims.items() if pair[0] != pair[1]}
    if not wrong:
        return
    known, _ = _measure(rebuild_empty({**arguments, "sizes": {}}, num_classes), size)
    for name, (told, found) in wrong.items():
        if name not in known or known[name][0] == known[name][1]:  # the base network tells the truth there
            raise EagleEyeError(f"`sizes` gives {told} for {name}, but the network has {found} channels there")


def _measure(model: nn.Module, size: Sequence[int]) -> tuple[Claims, int]:
    """What the network tells and what its shapes are; and its number of outputs."""
    network: Any = copy.deepcopy(model).to("meta").eval()
    infos = network.feature_info if isinstance(getattr(network, "feature_info", None), (list, tuple)) else ()
    images = torch.empty(1, *size, device="meta")
    with torch.no_grad():
        if hasattr(network, "forward_intermediates"):
            features, stages = network.forward_intermediates(images)
        else:
            features, stages = _hook_stages(network, infos, images)
        outputs = network.forward_head(features)
    claims: Claims = {}
    if isinstance(getattr(network, "num_features", None), int) and isinstance(features, Tensor):
        claims["num_features"] = network.num_features, _channels(features)
    if len(stages) == len(infos):
        for i, (info, stage) in enumerate(zip(infos, stages, strict=True)):
            if isinstance(info, dict) and isinstance(stage, Tensor) and isinstance(info.get("num_chs"), int):
                claims[f"feature_info.{i}.num_chs"] = info["num_chs"], _channels(stage)
    hidden, inputs = getattr(network, "head_hidden_size", None), _classifier_inputs(network)
    if isinstance(hidden, int):
        found = inputs or (_channels(outputs) if isinstance(outputs, Tensor) and not network.num_classes else hidden)
        claims["head_hidden_size"] = hidden, found
    return claims, _channels(outputs[0] if isinstance(outputs, (tuple, list)) else outputs)


def _hook_stages(network: Any, infos: Sequence[Any], images: Tensor) -> tuple[Tensor, list[Tensor]]:
    stages: list[Tensor] = []
    names = [info.get("module") for info in infos if isinstance(info, dict)]
    modules = dict(network.named_modules())
    handles = [
        modules[name].register_forward_hook(lambda module, args, output: stages.append(output))
        for name in names
        if name in modules
    ]
    features = network.forward_features(images)
    for handle in handles:
        handle.remove()
    return features, stages


def _classifier_inputs(network: Any) -> int | None:
    classifier = network.get_classifier() if hasattr(network, "get_classifier") else None
    if isinstance(classifier, nn.Linear):
        return classifier.in_features
    return classifier.in_channels if isinstance(classifier, nn.Conv2d) else None


def _channels(tensor: Tensor) -> int:
    """Of features `(N, C, H, W)`, tokens `(N, L, C)` or a vector `(N, C)`."""
    return tensor.shape[1] if tensor.ndim == 4 else tensor.shape[-1]
