"""Tensors that transformers must find in the weights: it allocates and draws at random what a file lacks.

transformers builds a network on `meta` and tells its timm architecture nothing of the file that follows. A file that
does not belong to its config would cost the memory of the base network, and give a random one, with a warning at most.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from eagleeye_hf.errors import EagleEyeError
from eagleeye_hf.publishing.config import CONFIG, WEIGHTS


class _Awaited:
    """A tensor on `meta` of which no empty one is made."""

    awaited = ""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.empty_like and isinstance(args[0], _Awaited):
            raise EagleEyeError(f"{WEIGHTS} does not fit {CONFIG}: {args[0].awaited} is missing, or of another shape")
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))


class _AwaitedParameter(_Awaited, nn.Parameter):
    pass


class _AwaitedBuffer(_Awaited, torch.Tensor):
    pass


def await_tensors(model: nn.Module) -> nn.Module:
    """Mark what of a network on `meta` must come from the weights: all but the classifier, which may be a new one."""
    classifier: Any = model.get_classifier() if hasattr(model, "get_classifier") else None  # type: ignore[operator]
    heads = classifier if isinstance(classifier, (tuple, list)) else (classifier,)
    exempt = {module for head in heads if isinstance(head, nn.Module) for module in head.modules()}
    kept = set(model.state_dict())
    for name, module in model.named_modules():
        for tensors in (module._parameters, module._buffers):
            for key, tensor in tensors.items():
                path = f"{name}.{key}".lstrip(".")
                if tensor is None or not tensor.is_meta or module in exempt or path not in kept:
                    continue
                if key != "num_batches_tracked":
                    tensors[key] = _mark(tensor, path)
    return model


def _mark(tensor: torch.Tensor, path: str) -> torch.Tensor:
    kind = _AwaitedParameter if isinstance(tensor, nn.Parameter) else _AwaitedBuffer
    marked: Any = torch.Tensor._make_subclass(kind, tensor.detach(), tensor.requires_grad)
    marked.awaited = path
    return marked
