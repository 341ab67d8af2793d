"""Pruned networks and whole checkpoints for the tests of publishing."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from eagleeye_hf import Metrics, Strategy, save_pretrained, slice_model, trace_model
from eagleeye_hf.publishing.card import CardFacts, write_card
from eagleeye_hf.runtimes.latency import Latency
from eagleeye_hf.runtimes.runtime import Place
from tests.helpers import make_model, random_blocks, random_keep

LABELS = [f"class {number}" for number in range(10)]


def pixels_of(name: str) -> int:
    return 32 if "cifar" in name else 64


def prune(name: str, pixels: int | None = None, **kwargs) -> tuple[nn.Module, torch.Tensor]:
    """A network with a random half of its channels and without two of its blocks, and two images for it."""
    model = make_model(name, **kwargs)
    pixels = pixels or pixels_of(name)
    size = (kwargs.get("in_chans", model.pretrained_cfg["input_size"][0]), pixels, pixels)
    graph = trace_model(model, size)
    return slice_model(model, graph, random_keep(graph, 0), random_blocks(graph, 0)[:2]), torch.randn(2, *size)


def whole_facts(model: nn.Module, **changes) -> CardFacts:
    """Facts of a run in which everything was measured."""
    graph = trace_model(model)
    numbers = {"full": 0.9, "vanilla": 0.12, "adaptive": 0.58, "fine-tuned": 0.875}
    facts = {
        "base": "resnet20_cifar",
        "graph": graph,
        "strategy": Strategy(
            tuple(max(group.step, group.channels // 2) if group.prunable else group.channels for group in graph.groups)
        ),
        "dataset": "uoft-cs/cifar10",
        "dataset_revision": "0b2714987fa478483af9968de7c934580d0bb9a2",
        "metrics": {n: Metrics(top1=top1, top5=0.99, loss=0.4, num_images=100) for n, top1 in numbers.items()},
        "holdout_images": 50,
        "training_curve": [{"epoch": 1, "loss": 1.5, "top1": 0.7}, {"epoch": 2, "loss": 1.1}],
        "file_bytes": (1_100_000, 600_000),
        "latency": [
            Latency(milliseconds=1.5, full_ms=2.5, place=Place(runtime="torch", device="CPU (x86_64)", threads=1)),
            Latency(
                milliseconds=0.75, full_ms=1.25, place=Place(runtime="onnxruntime", device="CPU (x86_64)", threads=2)
            ),
        ],
        "settings": {"criterion": "l1", "calibration images": 50, "seed": 3},
        "command": "accelerate launch recipes/mbv1.py --macs 0.5",
        "license": "bsd-2-clause",
    }
    return CardFacts(**(facts | changes))


def write_checkpoint(folder: Path, location: str | None = None, **changes) -> tuple[nn.Module, torch.Tensor]:
    """A pruned ResNet-20 with a whole card; with `location`, the card names that Hub repo."""
    model, images = prune("resnet20_cifar")
    card = write_card(whole_facts(make_model("resnet20_cifar"), **changes), location or str(folder), bool(location))
    save_pretrained(model, folder, label_names=LABELS, card=card)
    return model, images
