"""CIFAR-10 as tensors, decoded once, and a cheap fine-tuning on them: the same for every method that is compared."""

from __future__ import annotations

import io
import math
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

MEAN = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
NUM_TRAIN = 40_000
"""Of the 50,000 training images: these fine-tune; the other 10,000 calibrate and score."""


def read_jpegs(folder: Path, split: str) -> tuple[list[bytes], Tensor]:
    """Encoded images and labels, in the files' order."""
    images: list[bytes] = []
    labels: list[int] = []
    for path in sorted(folder.glob(f"{split}-*.parquet")):
        table = pq.read_table(path)
        image_column, label_column = table.column_names[:2]
        images += [row["bytes"] for row in table[image_column].to_pylist()]
        labels += table[label_column].to_pylist()
    return images, torch.tensor(labels)


def load_tensors(folder: Path, split: str, cache: Path) -> tuple[Tensor, Tensor]:
    """Images as uint8, shape `(N, 3, 32, 32)`, and labels; decoded once."""
    file = cache / f"cifar10_{split}.pt"
    if not file.exists():
        jpegs, labels = read_jpegs(folder, split)
        pixels = np.stack([np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB")) for jpeg in jpegs])
        cache.mkdir(parents=True, exist_ok=True)
        torch.save((torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), labels), file)
    return torch.load(file)


def normalize(images: Tensor) -> Tensor:
    return (images.float() / 255 - MEAN) / STD


def batches(images: Tensor, labels: Tensor, size: int = 128) -> list[tuple[Tensor, Tensor]]:
    return list(zip(normalize(images).split(size), labels.split(size), strict=True))


def finetune(model: nn.Module, images: Tensor, labels: Tensor, epochs: int, seed: int, lr: float) -> float:
    """Train in place: SGD, cosine, random crops and mirroring, float32; returns the seconds it took."""
    started = time.perf_counter()
    generator = torch.Generator().manual_seed(seed)
    model.train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, nesterov=True, weight_decay=1e-4)
    size = 128
    steps = epochs * (len(images) // size)
    for step in range(steps):
        if step % (len(images) // size) == 0:
            order = torch.randperm(len(images), generator=generator)
        chosen = order[(step * size) % (len(images) // size * size) :][:size]
        batch = augment(images[chosen], generator)
        for group in optimizer.param_groups:
            progress = step / steps
            group["lr"] = lr * min(1.0, (progress + 1e-3) / 0.05) * 0.5 * (1 + math.cos(math.pi * progress))
        loss = F.cross_entropy(model(batch), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    return time.perf_counter() - started


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Crops of the image padded by 4 pixels, half of them mirrored, normalised."""
    count = len(images)
    padded = F.pad(images, (4, 4, 4, 4))
    dy, dx = torch.randint(0, 9, (2, count, 1), generator=generator)
    columns = torch.arange(32) + dx
    mirrored = torch.rand(count, 1, generator=generator) < 0.5
    columns = torch.where(mirrored, columns.flip(1), columns)
    rows = torch.arange(32) + dy
    cropped = padded[torch.arange(count)[:, None, None], :, rows[:, :, None], columns[:, None, :]]  # N, H, W, C
    return normalize(cropped.permute(0, 3, 1, 2)).contiguous(memory_format=torch.channels_last)


@torch.inference_mode()
def test_accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    model = model.eval().to(memory_format=torch.contiguous_format)
    right = sum(int((model(x).argmax(1) == y).sum()) for x, y in batches(images, labels, 500))
    return right / len(labels)
