"""Width, depth and image size: what each gives alone, and all three in one search, at equal cost.

    pip install -e ".[benchmarks,onnx]"
    python -m benchmarks.three_dimensions run           # some hours of one core; goes on where it was stopped
    python -m benchmarks.three_dimensions table         # writes three_dimensions.md

Needs ../shared (CIFAR-10 and Imagenette, weights of ResNet-56 and EfficientNet-Lite0). Each row is one `eagleeye
compress`, with the same settings but for `--dimensions`: a search of 64 candidates, the repair without training, 150
steps without labels (`match_teacher`), and one epoch. Untrained and matched accuracies are of 2,048 holdout images,
which the full network was trained on; trained ones of the test images. One seed. Rows of a network are timed once
more together at the end, in random turns, for milliseconds of different hours can't be compared.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import datasets
import timm
import torch

from eagleeye_hf import SearchConfig
from eagleeye_hf.networks.description import describe_input
from eagleeye_hf.pruning.builder import Builder
from eagleeye_hf.runs.dimensions import trace_network
from eagleeye_hf.runtimes.config import LatencyConfig
from eagleeye_hf.runtimes.latency import draw_images, take_turns
from eagleeye_hf.runtimes.runtime import find_runtime
from eagleeye_hf.strategies.files import read_strategy

HERE, SHARED = Path(__file__).parent, Path(__file__).parents[1] / ".." / "shared"
OUTPUT = Path("outputs/three_dimensions")
DIMENSIONS = {"width": ["width"], "depth": ["depth"], "size": ["size"], "all": ["width", "depth", "size"]}
BUDGETS = {"macs": (0.5, 0.3), "latency": (0.5, 0.3)}
NETWORKS = {
    "resnet56_cifar": {
        "weights": SHARED / "models" / "resnet56_cifar10.safetensors",
        "data": SHARED / "data" / "cifar10",
        "train": 8_000,
        "test": 10_000,
        "options": "--calibration-images 1024 --holdout-images 2048 --batch-size 128 --lr 0.02",
    },
    "tf_efficientnet_lite0": {
        "weights": SHARED / "models" / "tf_efficientnet_lite0_in1k.safetensors",
        "data": SHARED / "data" / "imagenette",
        "train": 2_000,
        "test": 1_500,
        "options": "--calibration-images 256 --holdout-images 512 --batch-size 32 --lr 0.01 --adapt-epochs 0",
    },
}
COMMON = "--candidates 64 --match-steps 150 --epochs 1 --threads 1 --runtime onnxruntime --divisor 8 --seed {seed}"


def take_part(name: str) -> Path:
    """A dataset of some of the training and test images."""
    network, folder = NETWORKS[name], OUTPUT / "data" / name
    if not folder.exists():
        whole = datasets.load_dataset(str(network["data"]))
        test = next(split for split in ("validation", "test") if split in whole)
        part = whole["train"].shuffle(seed=0).select(range(network["train"]))
        folder.mkdir(parents=True)
        part.to_parquet(folder / "train-00000-of-00001.parquet")
        rest = whole[test].shuffle(seed=0).select(range(network["test"]))
        rest.to_parquet(folder / "test-00000-of-00001.parquet")
    return folder


def arms(seed: int) -> list[tuple[str, str, float, str, Path]]:
    return [
        (name, bound, part, kind, OUTPUT / f"seed{seed}" / f"{name}-{bound}{part}-{kind}")
        for name in NETWORKS
        for bound, parts in BUDGETS.items()
        for part in parts
        for kind in DIMENSIONS
    ]


def run(names: list[str], bounds: list[str], parts: list[float], kinds: list[str], seed: int) -> None:
    for name, bound, part, kind, folder in arms(seed):
        wanted = name in names and bound in bounds and part in parts and kind in kinds
        if not wanted or (folder / "config.json").exists():
            continue
        network = NETWORKS[name]
        command = [sys.executable, "-m", "eagleeye_hf", "compress", name, "--weights", str(network["weights"])]
        command += ["--dataset", str(take_part(name)), f"--{bound}", str(part), "--dimensions", *DIMENSIONS[kind]]
        command += [*network["options"].split(), *COMMON.format(seed=seed).split(), "--output", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        folder.mkdir(parents=True, exist_ok=True)
        (folder.parent / f"{folder.name}.log").write_text(done.stdout + done.stderr)
        print(
            folder.name, "done" if not done.returncode else (done.stderr.strip().splitlines() or ["?"])[-1], flush=True
        )


def read(folder: Path) -> dict[str, object] | None:
    if not (folder / "config.json").exists():
        return None
    found = json.loads((folder / "config.json").read_text())["eagleeye"]
    strategy = json.loads((folder / "strategy.json").read_text())
    untrained = {
        k: m["top1"] for k, m in found["holdout_metrics"].items() if k in ("vanilla", "adaptive", "compensated")
    }
    return {
        "untrained": max(untrained.values()),
        "matched": found["holdout_metrics"].get("matched", {}).get("top1"),
        "trained": found["metrics"]["fine-tuned"]["top1"],
        "full": found["metrics"]["full"]["top1"],
        "macs": strategy["macs"],
        "size": strategy["image_size"],
        "blocks": len(strategy["removed_blocks"]),
    }


def time_rows(name: str, folders: list[Path]) -> dict[str, float]:
    """Milliseconds of what was chosen for one network, and of the full one, in random turns, on one thread of ONNX
    Runtime."""
    torch.set_num_threads(1)
    runtime = find_runtime(LatencyConfig(runtime="onnxruntime", threads=1))
    model = timm.create_model(name, num_classes=10).eval()
    graph = trace_network(model, SearchConfig(dimensions=("width", "depth", "size")))
    builder = Builder(model, graph, [])
    chosen = [read_strategy(graph, str(folder / "strategy.json"), 1) for folder in folders]
    models = [model, *(builder.build(strategy, compensate=False).eval() for strategy in chosen)]
    programs = [runtime.load(model, draw_images(runtime, describe_input(model))) for model in models]
    turns = take_turns(programs, 150)
    return dict(zip(["full", *(folder.name for folder in folders)], map(min, turns), strict=True))


def table(seed: int) -> None:
    lines = ["# Width, depth and image size", "", (__doc__ or "").split("\n\n")[2].replace("\n", " "), ""]
    for name in NETWORKS:
        rows = [
            (bound, part, kind, folder, found)
            for n, bound, part, kind, folder in arms(seed)
            if n == name and (found := read(folder))
        ]
        if not rows:
            continue
        times = time_rows(name, [folder for *_, folder, _ in rows])
        full = times["full"]
        lines += [f"## {name}", "", f"The full network: {rows[0][4]['full']:.2%}, {full:.3f} ms.", ""]
        lines += ["| budget | may change | blocks gone | image | milliseconds | untrained | matched | trained |"]
        lines += ["|---|---|---:|---:|---:|---:|---:|---:|"]
        for bound, part, kind, folder, found in rows:
            ms = times[folder.name]
            lines.append(
                f"| {part:g} of the {'MACs' if bound == 'macs' else 'milliseconds'} | {kind} | {found['blocks']} "
                f"| {found['size'] or 'full'} | {ms:.3f} ({ms / full:.0%}) | {found['untrained']:.2%} "
                f"| {found['matched']:.2%} | **{found['trained']:.2%}** |"
            )
        lines.append("")
    (HERE / "three_dimensions.md").write_text("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("step", choices=["run", "table"])
    parser.add_argument("--network", nargs="*", default=list(NETWORKS))
    parser.add_argument("--bounds", nargs="*", choices=list(BUDGETS), default=list(BUDGETS))
    parser.add_argument("--kinds", nargs="*", choices=list(DIMENSIONS), default=list(DIMENSIONS))
    parser.add_argument("--parts", nargs="*", type=float, default=[0.5, 0.3], help="of the full network's cost")
    parser.add_argument("--seed", type=int, default=0)
    told = parser.parse_args()
    if told.step == "run":
        run(told.network, told.bounds, told.parts, told.kinds, told.seed)
    else:
        table(told.seed)
