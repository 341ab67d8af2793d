"""The sizes that modules keep, in tensors and in Python attributes: read, compared, written.

It imports torch and nothing else, since the code that a checkpoint may bring along has a copy of this file.
"""

from __future__ import annotations

import reprlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

Path = tuple[str | int, ...]
"""Leads from a module to a value: an attribute's name, then a place in the list there, or a key."""

Sizes = dict[str, dict[str, Any]]
"""Per module: attribute path -> integer, or tensor name -> its shape with null where nothing changed."""

STANDARD = {
    _ConvNd: ("in_channels", "out_channels", "groups"),
    _NormBase: ("num_features",),
    nn.Linear: ("in_features", "out_features"),
}
"""Layers whose tensors follow from a few of their attributes, the only ones of theirs that change."""

NOT_SIZES = frozenset(["stride", "kernel_size", "padding", "dilation", "num_classes", "training"])
"""Attributes that no checkpoint may change."""


def integer_attributes(module: nn.Module) -> Iterator[tuple[Path, int]]:
    """Every integer among a module's attributes, and in the lists and tuples there."""
    for name, value in vars(module).items():
        if type(value) is int:
            yield (name,), value
        elif isinstance(value, (list, tuple)):
            for i, item in enumerate(value):
                if type(item) is int:
                    yield (name, i), item


def changed_sizes(full: nn.Module, thin: nn.Module) -> Sizes:
    """What rebuilding `thin` from `full` takes: every channel count and tensor shape in which they differ.

    Raises:
        ValueError: `thin` has a module that `full` lacks, or a tensor of another number of dimensions.
    """
    modules = dict(full.named_modules())
    sizes: Sizes = {}
    for name, module in thin.named_modules():
        base = modules.get(name)
        if base is None:
            raise ValueError(f"it has {name} ({type(module).__name__}), which the base network lacks")
        changes: dict[str, Any] = {}
        counts = _channel_counts(base)
        for path, value in _channel_counts(module).items():
            if value != counts.get(path, value):
                changes[path] = value
        if not isinstance(module, tuple(STANDARD)):
            before = dict(_own_tensors(base))
            for key, tensor in _own_tensors(module):
                if key in before and tensor.shape != before[key].shape:
                    if tensor.ndim != before[key].ndim:
                        raise ValueError(f"its {name}.{key} has the shape {tuple(tensor.shape)}")
                    pairs = zip(tensor.shape, before[key].shape, strict=True)
                    changes[key] = [new if new != old else None for new, old in pairs]
        if changes:
            sizes[name] = changes
    return sizes


def apply_sizes(model: nn.Module, sizes: Mapping[str, Mapping[str, Any]]) -> nn.Module:
    """Shrink a freshly built model in place to the sizes of a checkpoint.

    Raises:
        ValueError: a size is not one that the model has, or not between 1 and its own.
    """
    modules = dict(model.named_modules())
    attributes: dict[tuple[str, Path], int] = {}
    if not isinstance(sizes, Mapping):
        raise ValueError(f"`sizes` maps modules to their sizes; got {type(sizes).__name__}")
    for name, changes in sizes.items():
        if isinstance(name, str) and _left_out(name, modules):
            continue
        module = modules.get(name)
        if module is None or not isinstance(changes, Mapping):
            raise ValueError(f"`sizes` names {reprlib.repr(name)}, which is no module of the base model")
        counts = _channel_counts(module)
        tensors = dict(_own_tensors(module))
        for key, value in changes.items():
            if key in tensors and isinstance(value, list):
                _shrink(module, key, _checked_shape(name, key, value, tuple(tensors[key].shape)))
            elif key in counts and key.split(".")[0] not in NOT_SIZES:
                least = 0 if "pad" in key else 1
                if type(value) is not int or not least <= value <= counts[key]:
                    range_ = f"an integer from {least} to {counts[key]}"
                    raise ValueError(f"`sizes[{name!r}][{key!r}]` is {range_}; got {reprlib.repr(value)}")
                attributes[name, _parse(key)] = value
            else:
                raise ValueError(
                    f"`sizes[{name!r}]` names {reprlib.repr(key)}, which is no size of {type(module).__name__}"
                )
        if isinstance(module, tuple(STANDARD)):
            _shrink_standard(module, {**counts, **changes})
    resize_modules(model, attributes)
    return model


def remove_modules(model: nn.Module, names: Collection[str]) -> nn.Module:
    """Put `nn.Identity` in the place of these modules, in place.

    Raises:
        ValueError: the model has no such module.
    """
    for name in names:
        parent, _, key = str(name).rpartition(".")
        around = dict(model.named_modules()).get(parent)
        if not key or around is None or around._modules.get(key) is None:
            raise ValueError(f"`removed_blocks` names {reprlib.repr(name)}, which is no module of the base model")
        around._modules[key] = nn.Identity()
    return model


def removed_modules(full: nn.Module, thin: nn.Module) -> list[str]:
    """Names of the modules in whose places `thin` has `nn.Identity`, though they have tensors in `full`."""
    modules = dict(full.named_modules())
    return [
        name
        for name, module in thin.named_modules()
        if type(module) is nn.Identity and name in modules and modules[name].state_dict()
    ]


def _left_out(name: str, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a module is, or was in, a head that is not there (`num_classes=0`)."""
    parts = name.split(".")
    return any(isinstance(modules.get(".".join(parts[: i + 1])), nn.Identity) for i in range(min(len(parts), 99)))


def _shrink_standard(module: Any, counts: Mapping[str, int]) -> None:
    """Cut the tensors of a convolution, BatchNorm or linear layer to its channel counts."""
    if isinstance(module, _ConvNd):
        out, inputs, groups = counts["out_channels"], counts["in_channels"], counts["groups"]
        if out % groups or inputs % groups:
            raise ValueError(f"a convolution with {groups} groups can't have {inputs} inputs and {out} outputs")
        first, second = (inputs, out // groups) if isinstance(module, _ConvTransposeNd) else (out, inputs // groups)
        _shrink(module, "weight", (first, second, *module.weight.shape[2:]))
        if module.bias is not None:
            _shrink(module, "bias", (out,))
    elif isinstance(module, nn.Linear):
        _shrink(module, "weight", (counts["out_features"], counts["in_features"]))
        if module.bias is not None:
            _shrink(module, "bias", (counts["out_features"],))
    else:
        for key, tensor in _own_tensors(module):
            if tensor.ndim == 1:
                _shrink(module, key, (counts["num_features"],))
    follow_shapes(module)


def _shrink(module: nn.Module, key: str, shape: tuple[int, ...]) -> None:
    full = getattr(module, key)
    if any(new > old for new, old in zip(shape, full.shape, strict=True)):
        raise ValueError(f"{type(module).__name__}.{key} can't grow from {tuple(full.shape)} to {shape}")
    thin = full.detach()[tuple(slice(size) for size in shape)].clone()
    if isinstance(full, nn.Parameter):
        setattr(module, key, nn.Parameter(thin, full.requires_grad))
    else:
        module._buffers[key] = thin


def _checked_shape(module: str, key: str, value: list[Any], full: tuple[int, ...]) -> tuple[int, ...]:
    if len(value) != len(full) or not all(
        v is None or (type(v) is int and 1 <= v <= f) for v, f in zip(value, full, strict=False)
    ):
        raise ValueError(
            f"`sizes[{module!r}][{key!r}]` is {reprlib.repr(value)}, which does not fit the base model's shape {full}"
        )
    return tuple(old if new is None else new for new, old in zip(value, full, strict=True))


def _own_tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from module.named_parameters(recurse=False)
    yield from module.named_buffers(recurse=False)


def _channel_counts(module: nn.Module) -> dict[str, int]:
    """What may count channels, in the order of the attributes; paths are written with dots."""
    standard = next((names for kind, names in STANDARD.items() if isinstance(module, kind)), None)
    found = [*integer_attributes(module), *_feature_channels(module)]
    order: dict[Any, int] = {name: place for place, name in enumerate(vars(module))}
    return {
        ".".join(map(str, path)): value
        for path, value in sorted(found, key=lambda item: order[item[0][0]])
        if not str(path[0]).startswith("_") and (standard is None or path[0] in standard)
    }


def _feature_channels(module: nn.Module) -> Iterator[tuple[Path, int]]:
    """The channels that `feature_info` promises, of which timm keeps a dictionary per stage."""
    infos = vars(module).get("feature_info")
    for i, info in enumerate(infos if isinstance(infos, (list, tuple)) else ()):
        if isinstance(info, dict) and type(info.get("num_chs")) is int:
            yield ("feature_info", i, "num_chs"), info["num_chs"]


def _parse(path: str) -> Path:
    return tuple(int(part) if part.isdigit() else part for part in path.split("."))


def resize_modules(model: nn.Module, sizes: Mapping[tuple[str, Path], int]) -> None:
    """Write Python sizes into the modules, then let the standard layers follow the shapes of their tensors."""
    for (module, path), size in sizes.items():
        _assign(model.get_submodule(module), path, size)
    for child in model.modules():
        follow_shapes(child)


def _assign(target: Any, path: Path, size: int) -> None:
    head, *rest = path
    old = getattr(target, head) if isinstance(head, str) and not isinstance(target, dict) else target[head]
    if not rest:
        new: Any = size
    elif isinstance(old, tuple):
        items = list(old)
        _assign(items, tuple(rest), size)
        new = tuple(items)
    else:
        _assign(old, tuple(rest), size)
        return
    if isinstance(head, str) and not isinstance(target, dict):
        setattr(target, head, new)
    else:
        target[head] = new


def follow_shapes(module: nn.Module) -> None:
    """Set the channel counts that a standard layer keeps beside its tensors."""
    if isinstance(module, _ConvNd):
        first, second = module.weight.shape[:2]
        if isinstance(module, _ConvTransposeNd):
            module.in_channels, module.out_channels = first, second * module.groups
        else:
            module.out_channels, module.in_channels = first, second * module.groups
    elif isinstance(module, _NormBase):
        tensor = module.weight if module.weight is not None else module.running_mean
        if tensor is not None:
            module.num_features = len(tensor)
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.PReLU):
        module.num_parameters = module.weight.numel()
