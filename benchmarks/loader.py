"""Images per second of decoding and augmenting, beside timm's own loaders, on the same files with the same transform.

    python benchmarks/loader.py --output benchmarks/loader.md

Makes JPEGs of the size of ImageNet's from scikit-learn's photographs, as a folder of images and as parquet, and reads
one epoch from each in turns; each number is the median over the rounds, by the processor time of the loader and its
workers, which other work on the machine disturbs least. Training is a step of MobileNetV1 thinned to half its MACs, for
scale.
"""

import argparse
import gc
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import datasets
import numpy as np
import timm
import torch
from accelerate import Accelerator
from PIL import Image
from sklearn.datasets import load_sample_images
from timm.data import create_dataset, create_loader
from torchvision import transforms

from eagleeye_hf import Budget, choose_channels, open_splits, sample_strategies, slice_model, trace_model
from eagleeye_hf.data.batches import Portion
from eagleeye_hf.data.transforms import build_preprocessing

BATCH = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=640)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    model = timm.create_model("mobilenetv1_100", num_classes=10)
    with tempfile.TemporaryDirectory() as folder:
        sizes = write_images(Path(folder), options.images)
        contestants = make_contestants(Path(folder), model, options)
        rates: dict[str, list[float]] = {name: [] for name in contestants}
        for _ in range(options.rounds):
            for name, epoch in contestants.items():
                rates[name].append(measure(epoch))
    training = measure_training(model)
    text = table(rates, training, options, statistics.median(sizes))
    print(text)
    if options.output:
        options.output.write_text(text)


def write_images(folder: Path, num: int) -> list[int]:
    """Crops of two photographs as JPEG, ten classes, in a folder per class and in four parquet files; their bytes."""
    random = np.random.default_rng(0)
    photographs = [Image.fromarray(photo) for photo in load_sample_images().images]
    rows: dict[str, list] = {"image": [], "label": []}
    sizes = []
    for number in range(num):
        photo = photographs[number % 2]
        x, y = random.integers(0, [photo.width - 500, photo.height - 375])
        place = folder / "images" / "train" / f"class {number % 10}" / f"{number:05}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        photo.crop((x, y, x + 500, y + 375)).save(place, quality=92)
        rows["image"].append(str(place))
        rows["label"].append(number % 10)
        sizes.append(place.stat().st_size)
    names = datasets.ClassLabel(names=[f"class {i}" for i in range(10)])
    table = datasets.Dataset.from_dict(rows, datasets.Features({"image": datasets.Image(), "label": names}))
    (folder / "parquet").mkdir()
    for shard in range(4):
        table.shard(4, shard).to_parquet(folder / "parquet" / f"train-{shard}.parquet")
    table.select(range(10)).to_parquet(folder / "parquet" / "test-0.parquet")
    test = folder / "images" / "test" / "class 0"
    test.mkdir(parents=True)
    (test / "0.jpg").symlink_to(rows["image"][0])
    return sizes


def make_contestants(folder: Path, model: torch.nn.Module, options: argparse.Namespace) -> dict[str, Callable]:
    """Functions that start one epoch."""
    view = build_preprocessing(model)[0]
    scale = transforms.Compose([torch.as_tensor, transforms.ConvertImageDtype(torch.float32)])
    transform = transforms.Compose([view.transform, scale, transforms.Normalize(view.mean, view.std)])

    def timm_loader(**arguments) -> Iterable:
        dataset = create_dataset(split="train", is_training=True, batch_size=BATCH, seed=0, **arguments)
        loader = create_loader(
            dataset,
            input_size=(3, 224, 224),
            batch_size=BATCH,
            is_training=True,
            num_workers=options.workers,
            use_prefetcher=False,
            persistent_workers=False,
        )
        dataset.transform = transform
        return loader

    def ours(source: str, streaming: bool) -> Callable[[], Iterable]:
        data = open_splits(folder / source, model, calibration_images=0, holdout_images=0, streaming=streaming)

        def epoch() -> Iterable:
            yield from data.train.epoch_batches(0, Portion(batch_size=BATCH), options.workers)
            data.train.release()  # so that the time of its workers is known

        return epoch

    images, parquet = folder / "images", str(folder / "parquet")
    return {
        "timm, image folder": lambda: timm_loader(name="", root=images),
        "ours, image folder": ours("images", streaming=False),
        "timm `hfds/`, parquet": lambda: timm_loader(name=f"hfds/{parquet}", root=str(folder / "cache")),
        "ours, parquet": ours("parquet", streaming=False),
        "timm `hfids/`, parquet stream": lambda: timm_loader(name=f"hfids/{parquet}", num_samples=options.images),
        "ours, parquet stream": ours("parquet", streaming=True),
    }


def measure(epoch: Callable[[], Iterable]) -> float:
    """Images per second of processor time, from the start of the workers to their end."""
    started, seen = sum(os.times()[:4]), 0
    for _, labels in epoch():
        seen += len(labels)
    gc.collect()
    return seen / (sum(os.times()[:4]) - started)


def measure_training(model: torch.nn.Module) -> float:
    """Images per second of training steps on images that are there already."""
    graph = trace_model(model)
    widths = sample_strategies(graph, Budget(macs=0.5), 1, 0)[0].widths
    network = slice_model(model, graph, choose_channels(model, graph, widths)).to(memory_format=torch.channels_last)
    accelerator = Accelerator(mixed_precision="bf16")
    network, optimizer = accelerator.prepare(network, torch.optim.SGD(network.parameters(), 0.01))
    images, labels = torch.randn(BATCH, 3, 224, 224).to(memory_format=torch.channels_last), torch.arange(BATCH) % 10
    times = []
    for _ in range(6):
        started = time.perf_counter()
        accelerator.backward(torch.nn.functional.cross_entropy(network.train()(images), labels))
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter() - started)
    return BATCH / statistics.median(times[1:])


def table(rates: dict[str, list[float]], training: float, options: argparse.Namespace, size: float) -> str:
    lines = [
        f"{options.images} JPEGs of 500 x 375 pixels ({size / 1e3:.0f} kB), the model's training transform at 224 px, "
        f"{options.workers} workers, batches of {BATCH}; median of {options.rounds} rounds in turns, "
        f"{platform.machine()} CPU, processor time of the loader and its workers; the ratios are taken within a round. "
        "Made by `benchmarks/loader.py`.",
        "",
        "| loader | images per second and core | to timm's |",
        "|---|---:|---:|",
    ]
    medians = {name: statistics.median(own) for name, own in rates.items()}
    names = list(medians)
    for timm_name, own_name in zip(names[::2], names[1::2], strict=True):
        ratio = statistics.median(b / a for a, b in zip(rates[timm_name], rates[own_name], strict=True))
        lines += [
            f"| {timm_name} | {medians[timm_name]:.0f} | |",
            f"| {own_name} | {medians[own_name]:.0f} | {ratio:.2f} |",
        ]
    lines.append(f"| training MobileNetV1 at half the MACs on this CPU, loader left out | {training:.0f} | |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
