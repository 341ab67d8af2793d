"""The last layer of a network, for other classes than it was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
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
