"""A thin model from its base architecture and the sizes that surgery changed; nothing traced, no foreign code run."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import timm
import torch
from accelerate import init_empty_weights
from timm.utils.model import reparameterize_model
from torch import nn
from torch.overrides import TorchFunctionMode

from eagleeye_hf.channels import resizing
from eagleeye_hf.channels.resizing import changed_sizes
from eagleeye_hf.errors import EagleEyeError
from eagleeye_hf.publishing.config import check_base, check_base_args

__all__ = ["apply_sizes", "build_empty", "build_lean", "build_thin", "changed_sizes"]

FILLING = {"kaiming_uniform_", "kaiming_normal_", "xavier_uniform_", "trunc_normal_", "constant_", "zeros_", "ones_"}
FILLING |= {"normal_", "uniform_", "fill_", "zero_", "mul_", "add_", "erfinv_", "clamp_"}


def build_thin(
    base: str,
    sizes: Mapping[str, Mapping[str, Any]],
    base_args: Mapping[str, Any] | None = None,
    fused: bool = False,
    removed_blocks: Collection[str] = (),
    **kwargs: Any,
) -> nn.Module:
    """Build the base architecture with random weights, then give it the sizes of a checkpoint.

    Args:
        fused: its branches are merged, as `timm.utils.reparameterize_model` does it.
    Raises:
        EagleEyeError: the base is unknown, or a size is not one that the base model has, or not between 1 and its own.
    """
    check_base(base)
    check_base_args(base_args or {})
    model = timm.create_model(base, pretrained=False, **{**(base_args or {}), **kwargs})
    model = reparameterize_model(model.eval(), inplace=True).train() if fused else model
    return apply_sizes(model, sizes, removed_blocks)


def build_empty(base: str, base_args: Mapping[str, Any], fused: bool = False, **kwargs: Any) -> nn.Module:
    """The base architecture whose parameters have shapes but no values: no memory is spent, and nothing is drawn."""
    check_base(base)
    check_base_args(base_args)
    try:
        with torch.device("cpu"), init_empty_weights(include_buffers=False), _NoFilling():
            model = timm.create_model(base, pretrained=False, **{**base_args, **kwargs})
        if fused:
            model = _fuse_empty(model)
    except Exception as error:  # the constructors of timm raise many kinds
        given = ", ".join(f"{key}={value!r}" for key, value in {**base_args, **kwargs}.items())
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
        raise EagleEyeError(f"timm can't build `base={base}` with {given} ({why})") from error
    kept = model.state_dict()
    if any(buffer.is_meta and name not in kept for name, buffer in model.named_buffers()):
        raise EagleEyeError(f"`base={base}` computes buffers from its weights, which no checkpoint of ours can rebuild")
    return model


def _fuse_empty(model: nn.Module) -> nn.Module:
    """Merge branches that have no values: statistics of BatchNorm lose theirs first."""
    kept = set(model.state_dict())
    for name, module in model.named_modules():
        for key, buffer in module._buffers.items():
            if buffer is not None and f"{name}.{key}".lstrip(".") in kept:
                module._buffers[key] = buffer.to("meta")
    with torch.device("meta"):
        return reparameterize_model(model.eval(), inplace=True).train()


def build_lean(
    base: str,
    sizes: Mapping[str, Mapping[str, Any]],
    base_args: Mapping[str, Any] | None = None,
    fused: bool = False,
    removed_blocks: Collection[str] = (),
    device: torch.device | str | None = None,
    **kwargs: Any,
) -> nn.Module:
    """As `build_thin`, for weights that follow: the base costs no memory, only what is left of it.

    Layers draw random weights as PyTorch's do, for a new head; the rest is zero.
    """
    model = apply_sizes(build_empty(base, base_args or {}, fused, **kwargs), sizes, removed_blocks)
    for module in model.modules():
        for key, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is None or not tensor.is_meta:
                continue
            zeros = torch.zeros_like(tensor, device="cpu")
            if isinstance(tensor, nn.Parameter):
                setattr(module, key, nn.Parameter(zeros, tensor.requires_grad))
            else:
                module._buffers[key] = zeros
        if isinstance(module, tuple(resizing.STANDARD)):
            module.reset_parameters()  # type: ignore[operator]
    return model.to(device or torch.get_default_device())


class _NoFilling(TorchFunctionMode):
    """Initialising tensors that have no values is time for nothing."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.__name__ in FILLING:
            target = args[0] if args else kwargs.get("tensor")
            if isinstance(target, torch.Tensor) and target.is_meta:
                return target
        return func(*args, **kwargs)


def apply_sizes(
    model: nn.Module, sizes: Mapping[str, Mapping[str, Any]], removed_blocks: Collection[str] = ()
) -> nn.Module:
    """Shrink a freshly built model in place to the blocks and sizes of a checkpoint.

    Raises:
        EagleEyeError: a block or a size is not one that the model has, or a size is not between 1 and its own.
    """
    try:
        return resizing.apply_sizes(resizing.remove_modules(model, removed_blocks), sizes)
    except ValueError as error:
        raise EagleEyeError(str(error)) from error
