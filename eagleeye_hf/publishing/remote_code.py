"""The modeling file for environments without this package: the same code, copied out of it when it is published."""

from __future__ import annotations

import ast
import inspect
from types import ModuleType

from eagleeye_hf import errors
from eagleeye_hf.channels import cut as thin
from eagleeye_hf.networks import cifar_resnet
from eagleeye_hf.publishing import rebuild

CODE_FILE = "modeling_eagleeye_pruned.py"
AUTO_MAP = {
    "AutoModelForImageClassification": "modeling_eagleeye_pruned.EagleEyeForImageClassification",
    "AutoModel": "modeling_eagleeye_pruned.EagleEyeModel",
}

HEAD = '''"""A pruned timm network for transformers, where eagleeye_hf is not installed.

Copied from eagleeye_hf when the checkpoint was published: it builds the base network and cuts its layers down to the
sizes in `config.json`. It needs timm, torch and transformers.
"""

from __future__ import annotations
'''

TAIL = '''
default_cfgs = {"eagleeye_pruned": {"architecture": "eagleeye_pruned"}}


@register_missing
def eagleeye_pruned(pretrained=False, base="", base_args=None, sizes=None, **kwargs):
    kwargs = {key: kwargs[key] for key in ("num_classes", "in_chans") if key in kwargs}
    return apply_sizes(timm.create_model(base, **(base_args or {}), **kwargs), sizes)


class EagleEyeForImageClassification(TimmWrapperForImageClassification):
    """A pruned network as a classifier."""


class EagleEyeModel(TimmWrapperModel):
    """A pruned network without its classifier."""
'''

IMPORTS = """
import reprlib
from collections.abc import Iterator, Mapping
from typing import Any

import timm
import torch
from timm.models import register_model
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from transformers.models.timm_wrapper.modeling_timm_wrapper import TimmWrapperForImageClassification, TimmWrapperModel


def register_missing(function):
    return function if timm.is_model(function.__name__) else register_model(function)
"""

RESIZING = ("resize_modules", "_assign", "follow_shapes")
REBUILDING = (
    *("apply_sizes", "_left_out", "_shrink_standard", "_shrink", "_checked_shape"),
    *("_own_tensors", "_integers", "_paths", "_parse"),
)


def modeling_code(base: str) -> str:
    """The file's text; it brings the CIFAR networks along where the base is one of them, since timm has none."""
    parts = [HEAD, IMPORTS, inspect.getsource(errors.EagleEyeError)]
    parts += [inspect.getsource(getattr(thin, name)) for name in RESIZING]
    parts += [_definition(rebuild, name) for name in ("Sizes", "STANDARD", "NOT_SIZES")]
    parts += [inspect.getsource(getattr(rebuild, name)) for name in REBUILDING]
    if hasattr(cifar_resnet, base):
        parts.append(_body(cifar_resnet))
    return "\n\n".join(part.strip("\n") for part in [*parts, TAIL]) + "\n"


def _definition(module: ModuleType, name: str) -> str:
    """The source of a constant."""
    source = inspect.getsource(module)
    for node in ast.parse(source).body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(target, ast.Name) and target.id == name:
            return ast.get_source_segment(source, node) or ""
    raise AssertionError(name)


def _body(module: ModuleType) -> str:
    """A module's source without what must stand at the top of a file."""
    lines = inspect.getsource(module).splitlines()
    kept = (line for line in lines if not line.startswith("from __future__"))
    return "\n".join("@register_missing" if line == "@register_model" else line for line in kept)
