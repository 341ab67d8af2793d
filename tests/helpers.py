"""Models, oracles and data that several tests use. Nothing here calls the code under test to say what is right."""

from __future__ import annotations

import copy
import os
from pathlib import Path

import datasets
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

from eagleeye_hf import Strategy
from eagleeye_hf.cli import main

SHARED = Path(__file__).resolve().parents[2] / "shared"

needs_shared = pytest.mark.skipif(
    not SHARED.is_dir() and not os.environ.get("CI"),
    reason="needs the CIFAR-10 files and weights in ../shared, which this clone does not have",
)


def make_model(name: str, **kwargs) -> nn.Module:
    """A timm model whose statistics, scales and biases are random, so that no channel is like another."""
    torch.manual_seed(0)
    model = timm.create_model(name, **kwargs).eval()
    return randomise(model)


def randomise(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in model.modules():
            if getattr(module, "running_mean", None) is not None:
                module.running_mean.copy_(torch.randn(module.running_mean.shape, generator=generator) * 0.1)
                module.running_var.copy_(torch.rand(module.running_var.shape, generator=generator) + 0.5)
        for parameter in model.parameters():
            if parameter.ndim <= 1 or not parameter.any():
                parameter.copy_(torch.rand(parameter.shape, generator=generator) + 0.5)
    return model


def random_keep(graph, seed: int, ratio: float | None = 0.5) -> dict[str, torch.Tensor]:
    """Keep a random half (or a random share) of every prunable group's units."""
    random = np.random.default_rng(seed)
    keep = {}
    for group in graph.prunable:
        share = random.uniform(0.2, 0.9) if ratio is None else ratio
        units = random.permutation(len(group.units))[: max(1, int(len(group.units) * share))]
        keep[group.name] = torch.from_numpy(np.sort(group.units[units].ravel()))
    return keep


def silence(model: nn.Module, graph, keep) -> nn.Module:
    """The full model in which nothing reads the removed channels: those columns of its weights are zero."""
    silenced = copy.deepcopy(model)
    tensors = dict(silenced.named_parameters())
    modules = dict(silenced.named_modules())
    with torch.no_grad():
        for group in graph.groups:
            if group.name not in keep:
                continue
            removed = np.setdiff1d(np.arange(group.channels), keep[group.name])
            for member in group.members:
                module = modules[member.tensor.rpartition(".")[0]]
                if member.tensor in tensors and member.dim in _input_dims(module, member.tensor):
                    tensors[member.tensor].index_fill_(member.dim, torch.from_numpy(member.index[removed].ravel()), 0)
    return silenced


def silence_blocks(model: nn.Module, graph, removed_blocks) -> nn.Module:
    """The model in which the branches of these blocks add zero: the parameters at their ends are zero."""
    silenced = copy.deepcopy(model)
    with torch.no_grad():
        for block in graph.blocks:
            if block.name in removed_blocks:
                for name in block.zeroed:
                    silenced.get_parameter(name).zero_()
    return silenced


def random_blocks(graph, seed: int) -> list[str]:
    """A random half of the blocks that can go."""
    names = [block.name for block in graph.removable]
    chosen = np.random.default_rng(seed).permutation(len(names))[: (len(names) + 1) // 2]
    return [names[place] for place in sorted(chosen)]


def strategy_of(graph, keep, removed_blocks=(), image_size=None) -> Strategy:
    """What `slice_model` is told, as a strategy."""
    widths = [len(keep.get(group.name, range(group.channels))) for group in graph.groups]
    return Strategy(tuple(widths), tuple(removed_blocks), image_size)


def _input_dims(module: nn.Module, tensor: str) -> tuple[int, ...]:
    """Which dimensions of a weight hold one entry per input channel."""
    if tensor.endswith("bias"):
        return ()
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        return (0,)
    if type(module).__name__ == "CondConv2d":  # one flattened kernel per expert, mixed by the routing layer's outputs
        return (0, 1)
    return (1,) if isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)) else ()


def digits_dataset(num_train: int = 200, num_test: int = 40) -> datasets.DatasetDict:
    """Ten classes of noise with a bright square whose place tells the class."""
    random = np.random.default_rng(0)

    def rows(num: int) -> datasets.Dataset:
        labels = [int(i % 10) for i in range(num)]
        images = []
        for label in labels:
            pixels = random.integers(0, 90, (32, 32, 3), dtype=np.uint8)
            pixels[3 * label : 3 * label + 3] = 255
            images.append(Image.fromarray(pixels))
        names = [f"class {i}" for i in range(10)]
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
        return datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)

    return datasets.DatasetDict({"train": rows(num_train), "test": rows(num_test)})


def run_command(capsys, *arguments: str) -> tuple[int, str, str]:
    """The exit code of `eagleeye` with these arguments, and what it prints and complains."""
    try:
        code = main(arguments)
    except SystemExit as stop:  # argparse's own
        code = int(stop.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err
