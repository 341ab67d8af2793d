"""What is saved is what was measured: the network that loading will build, compared with the one to save."""

from __future__ import annotations

import copy
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from eagleeye_hf.errors import EagleEyeError
from eagleeye_hf.networks.running import device_of, evaluation_mode
from eagleeye_hf.publishing.weights import widest_type

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Of the outputs for an image, relative to the largest."""
SCALES = (1.0, 8.0)
"""Of the random images: activations with a ceiling (ReLU6) show on the second."""

PLAIN = (bool, int, float, str, type(None), type, torch.dtype)
NOT_COMPARED = {"training", "num_classes", "in_chans", "inplace", "drop_rate", "drop_path_rate", "drop_prob"}
"""Of a module's attributes: in eval mode, and beside the shapes of its tensors, they change nothing."""


def confirm_outputs(model: nn.Module, rebuilt: nn.Module, input_size: Sequence[int]) -> None:
    """Refuse a network whose outputs the rebuilt one, with the same tensors, does not give.

    Where modules differ although these outputs don't (a branch that is still multiplied by zero hides it), random
    tensors decide.

    Args:
        rebuilt: as loading builds it, from the base network, the sizes and the model's tensors.
    Raises:
        EagleEyeError: the outputs differ; the message names the modules and attributes that do.
    """
    differences = list(find_differences(model, rebuilt))
    dtype = widest_type(tensor.dtype for tensor in rebuilt.state_dict().values())
    worst, tolerance = _compare(model, rebuilt, input_size, dtype)
    if worst <= tolerance and differences:
        worst, tolerance = _compare(_randomise(model), _randomise(rebuilt), input_size, torch.float64)
    if not worst <= tolerance:
        what = "; ".join(differences[:3]) or "no module differs, so its Python does (a hook, or a method replaced)"
        raise EagleEyeError(
            f"`model` would load as another network, whose outputs differ by {worst:.1e} of the largest: {what}. "
            "A checkpoint carries timm's architecture, its sizes and its pooling, not such changes; undo them, or "
            "register an architecture of your own with timm (`timm.models.register_model`)"
        )


def find_differences(model: nn.Module, rebuilt: nn.Module) -> Iterator[str]:
    """Modules of another type, and attributes of another value, in the order of the modules."""
    others = dict(rebuilt.named_modules())
    for name, module in model.named_modules():
        other = others.get(name)
        here = name or "the network"
        if other is None:
            yield f"{here} ({type(module).__name__}) would be missing"
        elif type(module) is not type(other):
            yield f"{here} is {type(module).__name__}, not {type(other).__name__}"
        else:
            mine, theirs = _attributes(module), _attributes(other)
            for key in mine:
                if mine[key] != theirs.get(key):
                    yield f"{here}.{key} is {_show(mine[key])}, not {_show(theirs.get(key))}"
    mine_ = dict(model.named_modules())
    yield from (f"{name} ({type(module).__name__}) is gone" for name, module in others.items() if name not in mine_)


def _attributes(module: nn.Module) -> dict[str, Any]:
    """Numbers, words and functions that a module keeps, and tuples of them."""
    return {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in vars(module).items()
        if not key.startswith("_") and key not in NOT_COMPARED and _is_plain(value)
    }


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return isinstance(value, PLAIN) or (callable(value) and not isinstance(value, nn.Module))


def _show(value: Any) -> str:
    return getattr(value, "__name__", None) or repr(value)[:60]


def _compare(
    model: nn.Module, rebuilt: nn.Module, input_size: Sequence[int], dtype: torch.dtype
) -> tuple[float, float]:
    """The worst relative difference of the outputs, and how large it may be."""
    device = device_of(model)
    expected, found = _outputs(model, rebuilt, input_size, device, dtype)
    if not bool(torch.isfinite(expected).all()) and dtype != torch.float64:  # half precision overflows
        device, dtype = torch.device("cpu"), torch.float64
        model, rebuilt = (copy.deepcopy(network).cpu().double() for network in (model, rebuilt))
        expected, found = _outputs(model, rebuilt, input_size, device, dtype)
    if not bool(torch.isfinite(expected).all()):
        raise EagleEyeError("`model` gives NaN or infinite outputs for random images; there is nothing to save")
    return max(_difference(*pair) for pair in zip(expected, found, strict=True)), TOLERANCE[dtype]


def _outputs(
    model: nn.Module, rebuilt: nn.Module, input_size: Sequence[int], device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Of both networks for the same random images; infinite ones where only the rebuilt one can't be run."""
    generator = torch.Generator().manual_seed(0)
    images = torch.stack([scale * torch.randn(*input_size, generator=generator) for scale in SCALES]).to(device, dtype)
    with evaluation_mode(model, rebuilt), torch.no_grad():
        try:
            expected = _flat(model(images))
        except Exception as error:  # networks raise many kinds
            raise EagleEyeError(
                f"`model` can't be run on images of {' x '.join(map(str, input_size))}, its own input size "
                f"({type(error).__name__}: {' '.join(str(error).split())[:200]}), so what it computes can't be checked"
            ) from error
        try:
            found = _flat(rebuilt(images))
        except Exception:  # another network, as its differences tell
            found = torch.full_like(expected, float("inf"))
    return expected, found if found.shape == expected.shape else torch.full_like(expected, float("inf"))


def _flat(outputs: Any) -> Tensor:
    """Shape `(N, values)`, of several outputs too."""
    parts = outputs if isinstance(outputs, (tuple, list)) else (outputs,)
    return torch.cat([part.cpu().double().flatten(1) for part in parts], 1)


def _difference(expected: Tensor, found: Tensor) -> float:
    return float((expected - found).abs().max() / expected.abs().max().clamp_min(1e-30))


def _randomise(model: nn.Module) -> nn.Module:
    """A copy in double precision, whose tensors are random by their names, none of them zero."""
    network = copy.deepcopy(model).cpu().double()
    values = {}
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point():
            generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            if tensor.ndim > 1:
                values[name] = noise / float(tensor[0].numel()) ** 0.5
            else:
                values[name] = 0.1 * noise + (0.0 if "mean" in name else 1.0)
    network.load_state_dict(values, strict=False)
    return network
