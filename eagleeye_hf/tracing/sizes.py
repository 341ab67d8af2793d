"""Which Python attributes of the modules count channels, so that they can follow the surgery."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from eagleeye_hf.channels.resizing import Path, integer_attributes
from eagleeye_hf.tracing.ids import Dim, Dims
from eagleeye_hf.tracing.listening import heard_modules

INPUT_SIZES = ("in_channels", "in_chs", "in_features", "in_dim", "inplanes", "dim_in")
OUTPUT_SIZES = ("out_channels", "out_chs", "out_features", "out_dim", "outplanes", "dim_out", "num_features")
OTHER_SIZES = ("channels", "num_channels", "dim", "width", "expand_chs", "embed_dim", "hidden_dim")

NOT_SIZES = frozenset(
    {"stride", "kernel_size", "padding", "dilation", "groups", "num_heads", "head_dim", "window_size", "axis"}
    | {"radix", "num_classes", "num_paths", "num_experts", "num_scales", "num_conv_branches", "reduction", "scale"}
    | {"filt_size", "output_stride", "depth"}
)
"""Integers that never count channels, though they may happen to equal a number of them."""


class SizeFinder:
    """Listens to the modules while they run and remembers (module, attribute path) -> the ids it counts."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.found_ids: dict[tuple[str, Path], np.ndarray] = {}
        self.inputs: dict[str, tuple[tuple[int, ...], Dims]] = {}
        self.outputs: dict[str, tuple[tuple[int, ...], Dims]] = {}
        self.intermediates: list[tuple[tuple[int, ...], Dims] | None] = []
        self._stack: list[nn.Module] = []
        self._features: tuple[tuple[int, ...], Dims] | None = None

    @contextmanager
    def listen(self, dims: Callable[[Tensor], Dims]) -> Iterator[None]:
        """Follow which module runs and what goes in and out, as `dims` describes it."""
        self._dims = dims
        self._modules = list(self.model.named_modules())
        self._names = {id(module): name for name, module in self._modules}
        forward_features = getattr(self.model, "forward_features", None)
        if forward_features is not None:

            def recorded(*args: Any, **kwargs: Any) -> Any:
                features = forward_features(*args, **kwargs)
                self._features = _describe(features, dims)
                return features

            self.model.forward_features = recorded
        try:
            with heard_modules(self._enter, self._leave):
                yield
        finally:
            del self._dims  # it knows who listens: nothing of a cycle is to stay
            if forward_features is not None:
                del self.model.forward_features

    def _enter(self, module: nn.Module, args: Any) -> None:
        self._stack.append(module)
        described = _describe(args, self._dims)
        if described is not None:
            self.inputs.setdefault(self._names.get(id(module), "?"), described)

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self._stack.pop()
        described = _describe(output, self._dims)
        if described is not None:
            self.outputs.setdefault(self._names.get(id(module), "?"), described)

    def has_heads(self, number: int) -> bool:
        """Whether the running module says that it has this many attention heads."""
        module = self._stack[-1] if self._stack else None
        return module is not None and any(
            value == number and _fits(path, "head") for path, value in integer_attributes(module)
        )

    def running_inputs(self, size: int) -> list[np.ndarray]:
        """Ids of the channels that the running module reads, where it reads `size` of them."""
        module = self._stack[-1] if self._stack else None
        shape, dims = self.inputs.get(self._names.get(id(module), "?"), ((), ()))
        return [dim for length, dim in zip(shape, dims, strict=True) if length == size and isinstance(dim, np.ndarray)]

    def found(self, size: int, ids: np.ndarray, role: str) -> np.ndarray | None:
        """The running code used `size`: look for it among the attributes of the modules that are running.

        Args:
            role: `"groups"` of a convolution, `"head"` for attention heads, `"shape"` for what a tensor is reshaped to;
                those attributes count nothing else.
        Returns:
            The ids that the same attribute already counts, which have to be tied to these, if there are any.
        """
        modules = self._stack[:-4:-1]
        if role == "shape" and modules:  # a module may also call methods of its parts
            modules += modules[0].children()
        for module in modules:
            name = self._names.get(id(module))
            if name is None:
                continue
            if role == "groups" and getattr(module, "groups", None) == size:  # of the layer, and of blocks around it
                self.found_ids.setdefault((name, ("groups",)), ids)
                continue
            if isinstance(module, (_ConvNd, _NormBase, nn.Linear)):
                continue
            taken = None
            for path, value in integer_attributes(module):
                if value == size and _fits(path, role):
                    known = self.found_ids.setdefault((name, path), ids)
                    if np.array_equal(known, ids):
                        return None
                    taken = known
            if taken is not None:
                return taken
        return None

    def finish(self) -> dict[tuple[str, Path], np.ndarray]:
        """Add the attributes that tell what goes into a module and what comes out."""
        for name, module in self._modules:
            if isinstance(module, (_ConvNd, _NormBase, nn.Linear)):
                continue
            before, after = self.inputs.get(name), self.outputs.get(name)
            for attribute, value in vars(module).items():
                if type(value) is not int:
                    continue
                if attribute in INPUT_SIZES or (attribute == "groups" and before is not None):  # depthwise
                    self._add(name, (attribute,), value, before)
                elif attribute in OUTPUT_SIZES:
                    self._add(name, (attribute,), value, after)
                elif attribute in OTHER_SIZES:
                    self._add(name, (attribute,), value, after, before)
            groups = self.found_ids.get((name, ("groups",)))
            if groups is not None and vars(module).get("in_channels") == len(groups):  # of a depthwise part inside
                self.found_ids.setdefault((name, ("in_channels",)), groups)
        self._finish_model()
        return self.found_ids

    def _finish_model(self) -> None:
        """What timm promises about the whole model: `num_features`, `head_hidden_size`, `feature_info`."""
        model = self.model
        if self._features is not None:
            self.found_ids.pop(("", ("num_features",)), None)
            self._add("", ("num_features",), getattr(model, "num_features", None), self._features)
        if hasattr(model, "get_classifier") and hasattr(model, "head_hidden_size"):
            classifier = model.get_classifier()
            name = self._names.get(id(classifier), "?")
            self._add("", ("head_hidden_size",), model.head_hidden_size, self.inputs.get(name), self._features)
            around = name.rpartition(".")[0]
            if around:  # the head, which makes a new classifier on `reset_classifier`
                features = getattr(self.model.get_submodule(around), "num_features", None)
                self._add(around, ("num_features",), features, self.inputs.get(name))
        for i, info in enumerate(getattr(model, "feature_info", None) or []):
            if isinstance(info, dict) and "num_chs" in info:
                at = str(info.get("module", "?"))
                side = self.inputs if info.get("hook_type") == "forward_pre" else self.outputs
                found = self.intermediates[i] if self.intermediates else side.get(at)
                self._add("", ("feature_info", i, "num_chs"), info["num_chs"], found)

    def misses_features(self) -> bool:
        """Whether `feature_info` names what is no module (HRNet's branches), but the model can hand it out."""
        names = [info.get("module") for info in getattr(self.model, "feature_info", None) or []]
        known = set(self._names.values()) - {""}
        return hasattr(self.model, "forward_intermediates") and any(name not in known for name in names)

    def found_intermediates(self, features: Sequence[Tensor], dims: Callable[[Tensor], Dims]) -> None:
        if len(features) == len(self.model.feature_info):
            self.intermediates = [_describe(feature, dims) for feature in features]

    def _add(self, module: str, path: Path, value: Any, *sides: tuple[tuple[int, ...], Dims] | None) -> None:
        if type(value) is not int:
            return
        for side in sides:
            if side is None:
                continue
            shape, dims = side
            for axis in (1, len(shape) - 1):
                if 0 < axis < len(shape) and shape[axis] == value and isinstance(dims[axis], np.ndarray):
                    self.found_ids.setdefault((module, path), _array(dims[axis]))
                    return


def _describe(value: Any, dims: Callable[[Tensor], Dims]) -> tuple[tuple[int, ...], Dims] | None:
    while isinstance(value, (tuple, list)) and value:
        value = value[0]
    return (tuple(value.shape), dims(value)) if isinstance(value, Tensor) else None


def _fits(path: Path, role: str) -> bool:
    name = str(path[0])
    if role in ("head", "shape"):
        return role in name and "dim" not in name
    return name not in NOT_SIZES


def _array(dim: Dim) -> np.ndarray:
    assert isinstance(dim, np.ndarray)
    return dim
