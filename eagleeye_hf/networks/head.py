"""The last layer of a network, for other classes than it was trained on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from timm.data import ImageNetInfo, infer_imagenet_subset
from torch import nn

from eagleeye_hf.errors import EagleEyeError, describe_error


def replace_head(model: nn.Module, names: Sequence[str]) -> nn.Module:
    """Give a network of timm a new last layer, in place, with an output per class; its weights are drawn at random.

    Raises:
        EagleEyeError: the network has no head that can be replaced.
    """
    num_classes = len(names)
    try:
        model.reset_classifier(num_classes)  # type: ignore[operator]
    except Exception as error:  # raised by the code of the model, or it has no such method
        raise EagleEyeError(
            f"`model` ({type(model).__name__}) can't be given {num_classes} outputs ({describe_error(error)}); give a "
            "network that has as many"
        ) from error
    config = dict(getattr(model, "pretrained_cfg", None) or {})
    config.pop("label_descriptions", None)
    config |= {"num_classes": num_classes, "label_names": list(names)}
    model.pretrained_cfg = model.default_cfg = config  # type: ignore[assignment]
    return model


def keep_outputs(model: nn.Module, outputs: Sequence[int], names: Sequence[str]) -> nn.Module:
    """Keep these outputs of a network of timm, in this order and called so, in place."""
    old: Any = model.get_classifier()  # type: ignore[operator]
    places = torch.tensor(outputs)
    weight, bias = old.weight.detach()[places], None if old.bias is None else old.bias.detach()[places]
    new: Any = replace_head(model, names).get_classifier()  # type: ignore[operator]
    with torch.no_grad():
        new.weight.copy_(weight)
        if bias is not None:
            new.bias.copy_(bias)
    return model


def find_outputs_of(model: nn.Module, names: Sequence[str]) -> tuple[int, ...] | None:
    """Which outputs of a network trained on ImageNet stand for these classes; None where that is not clear.

    Args:
        names: WordNet ids (n01440764), descriptions ("tench, Tinca tinca"), or one of their words ("tench").
    """
    classifier: Any = model.get_classifier() if hasattr(model, "get_classifier") else None  # type: ignore[operator]
    subset = infer_imagenet_subset(model) if hasattr(model, "pretrained_cfg") else None
    if subset is None or not isinstance(classifier, (nn.Linear, nn.Conv2d)):
        return None
    info = ImageNetInfo(subset)
    if len(classifier.weight) != info.num_classes():
        return None
    known: dict[str, set[int]] = defaultdict(set)
    for number in range(info.num_classes()):
        text = info.index_to_description(number)
        for word in (info.index_to_label_name(number), text, *text.split(",")):
            known[_plain(word)].add(number)
    found = [known.get(_plain(name), set()) for name in names]
    numbers = tuple(next(iter(places)) for places in found if len(places) == 1)
    return numbers if len(set(numbers)) == len(names) else None


def _plain(text: str) -> str:
    return " ".join(text.casefold().replace("_", " ").split())
