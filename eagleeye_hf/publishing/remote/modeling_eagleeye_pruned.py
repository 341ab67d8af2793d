"""A pruned timm network for transformers, where eagleeye_hf is not installed.

It builds the base network and cuts its layers down to the sizes in `config.json`. With `resizing.py` and
`cifar_resnet.py` beside it, it needs timm, torch and transformers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import timm
from timm.models import register_model
from timm.utils.model import reparameterize_model
from torch import nn
from transformers.models.timm_wrapper.modeling_timm_wrapper import TimmWrapperForImageClassification, TimmWrapperModel

from .cifar_resnet import CifarResNet  # noqa: F401  registers the networks that timm lacks
from .resizing import apply_sizes, remove_modules

default_cfgs = {"eagleeye_pruned": {"architecture": "eagleeye_pruned"}}


def eagleeye_pruned(
    pretrained: bool = False,
    base: str = "",
    base_args: Mapping[str, Any] | None = None,
    sizes: Mapping[str, Any] | None = None,
    removed_blocks: Sequence[str] = (),
    fused: bool = False,
    **kwargs: Any,
) -> nn.Module:
    """The pruned network with random weights; all arguments come from `config.json`."""
    kwargs = {key: kwargs[key] for key in ("num_classes", "in_chans") if key in kwargs}
    model = timm.create_model(base, **(base_args or {}), **kwargs)
    model = reparameterize_model(model.eval(), inplace=True) if fused else model
    return apply_sizes(remove_modules(model, removed_blocks), sizes or {})


if not timm.is_model("eagleeye_pruned"):  # eagleeye_hf, where it is imported after all, has its own
    register_model(eagleeye_pruned)


class EagleEyeForImageClassification(TimmWrapperForImageClassification):
    """A pruned network as a classifier."""


class EagleEyeModel(TimmWrapperModel):
    """A pruned network without its classifier."""
