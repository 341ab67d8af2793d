"""Imagenette as tensors at 160 px, decoded once, and a cheap training on them: the same for every method."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks.cifar_tensors import read_jpegs

PIXELS, MARGIN = 160, 16
"""Side of the images that networks see; training images are kept wider by this, and cropped."""
CLASSES = (0, 217, 482, 491, 497, 566, 569, 571, 574, 701)
"""Of Imagenette among ImageNet's 1,000."""
NUM_HELD_OUT = 2_048
"""Training images, the last ones, that calibrate and score; the others train."""
BATCH = 64
MODEL = "tf_efficientnet_lite0"


def load_photographs(folder: Path, split: str, cache: Path, pixels: int = PIXELS) -> tuple[Tensor, Tensor]:
    """Images as uint8, shape `(N, 3, pixels, pixels)`, whole photographs, and labels; decoded once."""
    file = cache / f"imagenette_{split}_{pixels}.pt"
    if not file.exists():
        jpegs, labels = read_jpegs(folder, split)
        images = (Image.open(io.BytesIO(jpeg)).convert("RGB") for jpeg in jpegs)
        found = np.stack([np.asarray(image.resize((pixels, pixels), Image.Resampling.BICUBIC)) for image in images])
        cache.mkdir(parents=True, exist_ok=True)
        torch.save((torch.from_numpy(found).permute(0, 3, 1, 2).contiguous(), labels), file)
    return torch.load(file)


def normalize(images: Tensor) -> Tensor:
    return images.float().div_(127.5).sub_(1).contiguous(memory_format=torch.channels_last)


def batches(images: Tensor, labels: Tensor, size: int = BATCH) -> list[tuple[Tensor, Tensor]]:
    return list(zip(map(normalize, images.split(size)), labels.split(size), strict=True))


def augment(images: Tensor, generator: torch.Generator, pixels: int = PIXELS) -> Tensor:
    """Random crops, half of them mirrored, normalised."""
    count = len(images)
    dy, dx = torch.randint(0, MARGIN + 1, (2, count, 1), generator=generator)
    columns = torch.arange(pixels) + dx
    mirrored = torch.rand(count, 1, generator=generator) < 0.5
    columns, rows = torch.where(mirrored, columns.flip(1), columns), torch.arange(pixels) + dy
    cropped = images[torch.arange(count)[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return normalize(cropped.permute(0, 3, 1, 2))


def train_steps(model: nn.Module, images: Tensor, labels: Tensor, epochs: int, seed: int, lr: float) -> Iterator[int]:
    """Train in place: SGD, cosine, labels only, bfloat16; one step at a time."""
    generator = torch.Generator().manual_seed(seed)
    model.train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, nesterov=True, weight_decay=1e-5)
    per_epoch = len(images) // BATCH
    steps = epochs * per_epoch
    for step in range(steps):
        if step % per_epoch == 0:
            order = torch.randperm(len(images), generator=generator)
        chosen = order[(step % per_epoch) * BATCH :][:BATCH]
        for group in optimizer.param_groups:
            progress = step / steps
            group["lr"] = lr * min(1.0, (progress + 1e-3) / 0.05) * 0.5 * (1 + math.cos(math.pi * progress))
        batch = augment(images[chosen], generator)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            outputs = model(batch)
        loss = F.cross_entropy(outputs.float(), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield step
    model.eval()


@torch.inference_mode()
def top1_of(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    model = model.eval().to(memory_format=torch.channels_last)
    parts = zip(images.split(128), labels.split(128), strict=True)
    right = sum(int((model(normalize(x)).argmax(1) == y).sum()) for x, y in parts)
    return right / len(labels)


def ten_classes(weights: Path, data: Path, cache: Path, epochs: int = 2, lr: float = 0.01) -> nn.Module:
    """EfficientNet-Lite0 at 160 px with a head of Imagenette's classes, begun from ImageNet's rows, trained once."""
    overlay = {"input_size": (3, PIXELS, PIXELS), "crop_pct": 1.0, "num_classes": len(CLASSES)}
    model = timm.create_model(MODEL, num_classes=len(CLASSES), pretrained_cfg_overlay=overlay)
    file = cache / "lite0_imagenette.safetensors"
    if not file.exists():
        state = load_file(weights)
        for name in ("classifier.weight", "classifier.bias"):
            state[name] = state[name][list(CLASSES)].clone()
        model.load_state_dict(state)
        images, labels = load_photographs(data, "train", cache, PIXELS + MARGIN)
        images, labels = images[:-NUM_HELD_OUT], labels[:-NUM_HELD_OUT]
        started = time.perf_counter()
        for step in train_steps(model, images, labels, epochs, 0, lr):
            if step % 20 == 0:
                print(f"step {step}, {time.perf_counter() - started:.0f} s", flush=True)
        save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, file)
    model.load_state_dict(load_file(file))
    return model.eval()
