"""Depthwise convolutions of bfloat16 training on a CPU, their gradients computed in float32."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.utils import _pair
from torch.overrides import TorchFunctionMode


class Float32Depthwise(TorchFunctionMode):
    """Within it, a depthwise convolution under autocast on a CPU runs as it does, but its gradients are computed in
    float32: a CPU has quick kernels for those alone (in bfloat16 strided ones take ten times as long, and those of
    5 x 5 weights two to three times), and their sums are more exact.

    What else runs, and where, is left alone.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        run = _convolve if func is torch.conv2d else func
        return run(*args, **(kwargs or {}))


def _convolve(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: str | int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    depthwise = groups > 1 and weight.shape[1] == 1 and input.ndim == 4 and not isinstance(padding, str)
    on_cpu = input.device.type == "cpu" and torch.is_autocast_enabled("cpu")
    if not (depthwise and on_cpu and torch.is_grad_enabled()):
        return torch.conv2d(input, weight, bias, stride, padding, dilation, groups)
    return _Convolution.apply(input, weight, bias, _pair(stride), _pair(padding), _pair(dilation), groups)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, *how: Any) -> Tensor:
        ctx.save_for_backward(input, weight)
        ctx.how, ctx.bias = how, bias
        return torch.conv2d(input, weight, bias, *how)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (input, weight) = gradients, ctx.saved_tensors
        stride, padding, dilation, groups = ctx.how
        wanted = ctx.needs_input_grad[:3]
        found = torch.ops.aten.convolution_backward(
            gradient.float(),
            input.to(gradient.dtype).float(),
            weight.to(gradient.dtype).float(),
            None if ctx.bias is None else list(ctx.bias.shape),
            stride,
            padding,
            dilation,
            False,
            [0, 0],
            groups,
            wanted,
        )
        kinds = (input, weight, ctx.bias)
        given = [g.to(kind.dtype) if wants else None for g, kind, wants in zip(found, kinds, wanted, strict=True)]
        return (*given, None, None, None, None)
