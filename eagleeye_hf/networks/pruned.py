"""`eagleeye_pruned` in timm's register; what builds it is imported when it is first built."""

from __future__ import annotations

from typing import Any

from timm.models import register_model
from torch import nn

default_cfgs = {"eagleeye_pruned": {"architecture": "eagleeye_pruned"}}


@register_model
def eagleeye_pruned(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """A pruned network; `base`, `sizes` and the rest come from the checkpoint's `model_args`."""
    import importlib

    return importlib.import_module("eagleeye_hf.publishing.entrypoint").build_pruned(pretrained, **kwargs)
