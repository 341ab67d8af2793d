"""A thin model from its base architecture and the sizes that surgery changed; nothing traced, no foreign code run."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Mapping
from typing import Any

import timm
import torch
from accelerate import init_empty_weights
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.overrides import TorchFunctionMode

from eagleeye_hf.channels.cut import follow_shapes, resize_modules
from eagleeye_hf.errors import EagleEyeError
from eagleeye_hf.publishing.config import check_base, check_base_args

Sizes = dict[str, dict[str, Any]]
"""Per module: attribute path -> integer, or tensor name -> its shape with null where nothing changed."""

FILLING = {"kaiming_uniform_", "kaiming_normal_", "xavier_uniform_", "trunc_normal_", "constant_", "zeros_", "ones_"}
FILLING |= {"normal_", "uniform_", "fill_", "zero_", "mul_", "add_", "erfinv_", "clamp_"}

STANDARD = {
    _ConvNd: ("in_channels", "out_channels", "groups"),
    _NormBase: ("num_features",),
    nn.Linear: ("in_features", "out_features"),
}


def changed_sizes(full: nn.Module, thin: nn.Module) -> Sizes:
    """What rebuilding `thin` from `full` takes: every channel count and tensor shape in which they differ."""
    modules = dict(full.named_modules())
    sizes: Sizes = {}
    for name, module in thin.named_modules():
        base = modules[name]
        changes: dict[str, Any] = {}
        numbers = dict(_integers(base))
        for path, value in _integers(module):
            if value != numbers.get(path, value):
                changes[path] = value
        if not isinstance(module, tuple(STANDARD)):
            own = dict(_own_tensors(base))
            for key, tensor in _own_tensors(module):
                if key in own and tensor.shape != own[key].shape:
                    pairs = zip(tensor.shape, own[key].shape, strict=True)
                    changes[key] = [new if new != old else None for new, old in pairs]
        if changes:
            sizes[name] = changes
    return sizes


def build_thin(
    base: str, sizes: Mapping[str, Mapping[str, Any]], base_args: Mapping[str, Any] | None = None, **kwargs: Any
) -> nn.Module:
    """Build the base architecture with random weights, then give it the sizes of a checkpoint.

    Raises:
        EagleEyeError: the base is unknown, or a size is not one that the base model has, or not between 1 and its own.
    """
    check_base(base)
    check_base_args(base_args or {})
    return apply_sizes(timm.create_model(base, pretrained=False, **{**(base_args or {}), **kwargs}), sizes)


def build_empty(base: str, base_args: Mapping[str, Any], **kwargs: Any) -> nn.Module:
    """The base architecture whose parameters have shapes but no values: no memory is spent, and nothing is drawn."""
    check_base(base)
    check_base_args(base_args)
    try:
        with init_empty_weights(include_buffers=False), _NoFilling():
            model = timm.create_model(base, pretrained=False, **{**base_args, **kwargs})
    except Exception as error:  # the constructors of timm raise many kinds
        given = ", ".join(f"{key}={value!r}" for key, value in {**base_args, **kwargs}.items())
        raise EagleEyeError(f"timm can't build `base={base}` with {given} ({type(error).__name__}: {error})") from error
    kept = model.state_dict()
    if any(buffer.is_meta and name not in kept for name, buffer in model.named_buffers()):
        raise EagleEyeError(f"`base={base}` computes buffers from its weights, which no checkpoint of ours can rebuild")
    return model


class _NoFilling(TorchFunctionMode):
    """Initialising tensors that have no values is time for nothing."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.__name__ in FILLING:
            target = args[0] if args else kwargs.get("tensor")
            if isinstance(target, torch.Tensor) and target.is_meta:
                return target
        return func(*args, **kwargs)


def apply_sizes(model: nn.Module, sizes: Mapping[str, Mapping[str, Any]]) -> nn.Module:
    """Shrink a freshly built model in place to the sizes of a checkpoint."""
    modules = dict(model.named_modules())
    attributes: dict[tuple[str, tuple[str | int, ...]], int] = {}
    if not isinstance(sizes, Mapping):
        raise EagleEyeError(f"`sizes` maps modules to their sizes; got {type(sizes).__name__}")
    for name, changes in sizes.items():
        if isinstance(name, str) and _left_out(name, modules):
            continue
        module = modules.get(name)
        if module is None or not isinstance(changes, Mapping):
            raise EagleEyeError(f"`sizes` names {reprlib.repr(name)}, which is no module of the base model")
        numbers = dict(_integers(module))
        tensors = dict(_own_tensors(module))
        for key, value in changes.items():
            if key in tensors and isinstance(value, list):
                _shrink(module, key, _checked_shape(name, key, value, tuple(tensors[key].shape)))
            elif key in numbers and key in _paths(module):
                least = 0 if "pad" in key else 1
                if type(value) is not int or not least <= value <= numbers[key]:
                    range_ = f"an integer from {least} to {numbers[key]}"
                    raise EagleEyeError(f"`sizes[{name!r}][{key!r}]` is {range_}; got {reprlib.repr(value)}")
                attributes[name, _parse(key)] = value
            else:
                raise EagleEyeError(
                    f"`sizes[{name!r}]` names {reprlib.repr(key)}, which is no size of {type(module).__name__}"
                )
        if isinstance(module, tuple(STANDARD)):
            _shrink_standard(module, {**numbers, **changes})
    resize_modules(model, attributes)
    return model


def _left_out(name: str, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a module is, or was in, a head that is not there (`num_classes=0`)."""
    parts = name.split(".")
    return any(isinstance(modules.get(".".join(parts[: i + 1])), nn.Identity) for i in range(min(len(parts), 99)))


def _shrink_standard(module: Any, numbers: Mapping[str, int]) -> None:
    """Cut the tensors of a convolution, BatchNorm or linear layer to its channel counts."""
    if isinstance(module, _ConvNd):
        out, inputs, groups = numbers["out_channels"], numbers["in_channels"], numbers["groups"]
        if out % groups or inputs % groups:
            raise EagleEyeError(f"a convolution with {groups} groups can't have {inputs} inputs and {out} outputs")
        first, second = (inputs, out // groups) if isinstance(module, _ConvTransposeNd) else (out, inputs // groups)
        _shrink(module, "weight", (first, second, *module.weight.shape[2:]))
        if module.bias is not None:
            _shrink(module, "bias", (out,))
    elif isinstance(module, nn.Linear):
        _shrink(module, "weight", (numbers["out_features"], numbers["in_features"]))
        if module.bias is not None:
            _shrink(module, "bias", (numbers["out_features"],))
    else:
        for key, tensor in _own_tensors(module):
            if tensor.ndim == 1:
                _shrink(module, key, (numbers["num_features"],))
    follow_shapes(module)


def _shrink(module: nn.Module, key: str, shape: tuple[int, ...]) -> None:
    full = getattr(module, key)
    if any(new > old for new, old in zip(shape, full.shape, strict=True)):
        raise EagleEyeError(f"{type(module).__name__}.{key} can't grow from {tuple(full.shape)} to {shape}")
    thin = full.detach()[tuple(slice(size) for size in shape)].clone()
    if isinstance(full, nn.Parameter):
        setattr(module, key, nn.Parameter(thin, full.requires_grad))
    else:
        module._buffers[key] = thin


def _checked_shape(module: str, key: str, value: list[Any], full: tuple[int, ...]) -> tuple[int, ...]:
    if len(value) != len(full) or not all(
        v is None or (type(v) is int and 1 <= v <= f) for v, f in zip(value, full, strict=False)
    ):
        raise EagleEyeError(
            f"`sizes[{module!r}][{key!r}]` is {reprlib.repr(value)}, which does not fit the base model's shape {full}"
        )
    return tuple(old if new is None else new for new, old in zip(value, full, strict=True))


def _own_tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from module.named_parameters(recurse=False)
    yield from module.named_buffers(recurse=False)


def _integers(module: nn.Module) -> Iterator[tuple[str, int]]:
    """Attribute paths that may count channels, written with dots."""
    standard = next((names for kind, names in STANDARD.items() if isinstance(module, kind)), None)
    for name, value in vars(module).items():
        if name.startswith("_") or (standard is not None and name not in standard):
            continue
        if type(value) is int:
            yield name, value
        elif isinstance(value, (list, tuple)):
            for i, item in enumerate(value):
                if type(item) is int:
                    yield f"{name}.{i}", item
                elif name == "feature_info" and isinstance(item, dict) and type(item.get("num_chs")) is int:
                    yield f"{name}.{i}.num_chs", item["num_chs"]


NOT_SIZES = frozenset(["stride", "kernel_size", "padding", "dilation", "num_classes", "training"])


def _paths(module: nn.Module) -> set[str]:
    return {path for path, _ in _integers(module) if path.split(".")[0] not in NOT_SIZES}


def _parse(path: str) -> tuple[str | int, ...]:
    return tuple(int(part) if part.isdigit() else part for part in path.split("."))
