"""Width, depth and image size: what each gives alone, and all three in one search, at equal cost.

    pip install -e ".[benchmarks,onnx]"
    python -m benchmarks.three_dimensions run           # some hours of one core; goes on where it was stopped
    python -m benchmarks.three_dimensions table         # writes three_dimensions.md

Needs ../shared (CIFAR-10 and Imagenette, weights of ResNet-56 and EfficientNet-Lite0). Each row is one `eagleeye
compress` per seed, with the same settings but for `--dimensions`: a search of 200 candidates (64), the repair without
training, 150 steps without labels (`match_teacher`; EfficientNet-Lite0: 60), and one epoch of 4,928 (1,232) images.
EfficientNet-Lite0 has the ten classes' outputs of its 1,000. Untrained and matched accuracies are of 2,048 (512)
holdout images, of CIFAR-10 such as the full network was trained on; trained ones of the 10,000 (1,500) test images.
Means over the seeds. All networks are timed once more together at the end, in random turns, for milliseconds of
different hours can't be compared; they are parts of the full network's. Rows that were not run here stay as they are.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import timm
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from safetensors.torch import load_file, save_file

from benchmarks.imagenette_tensors import CLASSES
from benchmarks.pages import sections_of
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
TITLES = {"width": "channels", "depth": "blocks", "size": "image size", "all": "all three, one search"}
COLORS = {"width": "#9aa5b1", "depth": "#3caea3", "size": "#edae49", "all": "#d1495b"}
MARKERS = {0.5: "o", 0.3: "^"}
HOLLOW = " of MACs; hollow: of ms"
BUDGETS = {"macs": (0.5, 0.3), "latency": (0.5, 0.3)}
NETWORKS: dict[str, dict[str, Any]] = {
    "resnet56_cifar": {
        "weights": SHARED / "models" / "resnet56_cifar10.safetensors",
        "data": SHARED / "data" / "cifar10",
        "train": 8_000,
        "test": 10_000,
        "options": "--candidates 200 --calibration-images 1024 --holdout-images 2048 --batch-size 128 --lr 0.02 "
        "--match-steps 150",
    },
    "tf_efficientnet_lite0": {
        "weights": SHARED / "models" / "tf_efficientnet_lite0_in1k.safetensors",
        "data": SHARED / "data" / "imagenette",
        "train": 2_000,
        "test": 1_500,
        "classes": CLASSES,
        "options": "--candidates 64 --calibration-images 256 --holdout-images 512 --batch-size 32 --lr 0.01 "
        "--match-steps 60",
    },
}
SEEDS = (0, 1)
PAGE = HERE / "three_dimensions.md"
PICTURE = "![Accuracy over milliseconds](three_dimensions.png)"
"""What is written below it in the page stays."""
COMMON = "--epochs 1 --threads 1 --runtime onnxruntime --divisor 8 --seed {seed}"


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


def take_weights(name: str) -> Path:
    """The network's, of its last layer the outputs of the dataset's classes alone."""
    network, file = NETWORKS[name], OUTPUT / "data" / f"{name}.safetensors"
    if "classes" not in network:
        return network["weights"]
    if not file.exists():
        tensors = load_file(network["weights"])
        for key in ("classifier.weight", "classifier.bias"):
            tensors[key] = tensors[key][list(network["classes"])]
        save_file(tensors, file)
    return file


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
        command = [sys.executable, "-m", "eagleeye_hf", "compress", name, "--dataset", str(take_part(name))]
        command += ["--weights", str(take_weights(name)), f"--{bound}", str(part), "--dimensions", *DIMENSIONS[kind]]
        command += [*network["options"].split(), *COMMON.format(seed=seed).split(), "--output", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        folder.mkdir(parents=True, exist_ok=True)
        (folder.parent / f"{folder.name}.log").write_text(done.stdout + done.stderr)
        print(
            folder.name, "done" if not done.returncode else (done.stderr.strip().splitlines() or ["?"])[-1], flush=True
        )


def read(folder: Path) -> dict[str, Any] | None:
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


def least(folder: Path) -> str | None:
    """What is left at least, where a budget was out of reach."""
    log = folder.parent / f"{folder.name}.log"
    found = re.search(r"is out of reach: .* still has ([\d.]+ of \w+ \w+)", log.read_text()) if log.exists() else None
    return found and found[1]


def time_networks(name: str, folders: list[Path]) -> list[float]:
    """Milliseconds of the full network and of what was chosen for it, in random turns, on one thread of ONNX
    Runtime."""
    torch.set_num_threads(1)
    runtime = find_runtime(LatencyConfig(runtime="onnxruntime", threads=1))
    model = timm.create_model(name, num_classes=10).eval()
    graph = trace_network(model, SearchConfig(dimensions=("width", "depth", "size")))
    builder = Builder(model, graph, [], "l1")
    chosen = [read_strategy(graph, str(folder / "strategy.json"), 1) for folder in folders]
    models = [model, *(builder.build(strategy, compensate=False).eval() for strategy in chosen)]
    programs = [runtime.load(model, draw_images(runtime, describe_input(model))) for model in models]
    turns = take_turns(programs, 150)
    return list(map(min, turns))


def draw(networks: dict[str, list[tuple[str, float, str, float, float]]], file: Path) -> None:
    """Top-1 over milliseconds, a panel per network; rows of (bound, budget, what may change, milliseconds
    as a part of the full network's, top-1)."""
    figure = Figure(figsize=(5.6 * len(networks), 4.0), layout="constrained", dpi=130)
    for axes, (name, rows) in zip(figure.subplots(1, len(networks), squeeze=False)[0], networks.items(), strict=True):
        for kind, color in COLORS.items():
            own = sorted(row for row in rows if row[2] == kind)
            for bound, budget, _, part, top1 in own:
                inside = color if bound == "macs" else "none"
                how = {"color": color, "markerfacecolor": inside, "markersize": 9 if kind == "all" else 7}
                axes.plot(100 * part, 100 * top1, MARKERS[budget], **how)
            if own:
                axes.plot([], [], "s", color=color, label=TITLES[kind])
        full = rows[-1]
        axes.plot(100, 100 * full[4], "*", color="black", markersize=12)
        axes.annotate("full network", (100, 100 * full[4]), (-8, -14), textcoords="offset points", ha="right")
        for budget, marker in MARKERS.items():
            axes.plot([], [], marker, color="gray", markerfacecolor="none", label=f"budget {budget:g}" + HOLLOW)
        axes.set(title=name, xlabel="milliseconds, % of the full network's", ylabel="top-1 after a short training, %")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.2)
        axes.legend(frameon=False, fontsize=8, title="may change", loc="lower right")
    FigureCanvasAgg(figure)
    figure.savefig(file)


def told_rows(page: str) -> dict[tuple[str, ...], str]:
    """Of a network, a budget and what may change: the line of a page."""
    sections = sections_of(page.partition(PICTURE)[0])
    rows = [(name, line) for name, text in sections.items() for line in text.splitlines() if line.startswith("| 0")]
    return {(name, *line.strip("| ").split(" | ")[:2]): line for name, line in rows}


def told_point(line: str) -> tuple[float, float] | None:
    """Of such a line: milliseconds as a part of the full network's and accuracy; None where it is out of reach."""
    found = re.search(r"\| (\d+)% \|.* \*\*([\d.]+)%", line)
    return found and (int(found[1]) / 100, float(found[2]) / 100)


def write_row(what: str, kind: str, rows: list[dict[str, Any]], parts: list[float]) -> str:
    """A line of the page; a row per seed, and milliseconds as parts of the full network's."""
    mean = {key: statistics.mean(row[key] for row in rows) for key in ("untrained", "matched", "trained")}
    cells = [what, kind, str(len(rows)), ", ".join(str(row["blocks"]) for row in rows)]
    cells += [", ".join(str(row["size"] or "full") for row in rows), f"{statistics.mean(parts):.0%}"]
    cells += [f"{mean['untrained']:.2%}", f"{mean['matched']:.2%}", f"**{mean['trained']:.2%}**"]
    return f"| {' | '.join(cells)} |"


def table() -> None:
    before = PAGE.read_text() if PAGE.exists() else PICTURE + "\n"
    told = told_rows(before)
    drawn: dict[str, list[tuple[str, float, str, float, float]]] = {}
    lines = ["# Width, depth and image size", "", (__doc__ or "").split("\n\n")[2].replace("\n", " "), ""]
    for name in NETWORKS:
        folders: dict[Path, dict[str, Any]] = {arm[4]: row for s in SEEDS for arm in arms(s) if (row := read(arm[4]))}
        folders = {folder: row for folder, row in folders.items() if folder.name.startswith(name)}
        if folders:
            times = dict(zip(["full", *folders], time_networks(name, list(folders)), strict=True))
            accuracy = next(iter(folders.values()))["full"]
            head = f"The full network: {accuracy:.2%}, {times['full']:.3f} ms."
        elif found := re.search(rf"## {name}\n\n(The full network: ([\d.]+)%.*)", before):
            head, accuracy = found[1], float(found[2]) / 100
        else:
            continue
        lines += [f"## {name}", "", head, ""]
        lines += ["| budget | may change | seeds | blocks gone | image | ms | untrained | matched | trained |"]
        lines += ["|---|---|---:|---:|---:|---:|---:|---:|---:|"]
        drawn[name] = []
        for _, bound, part, kind, first in [arm for arm in arms(SEEDS[0]) if arm[0] == name]:
            what = f"{part:g} of the {'MACs' if bound == 'macs' else 'milliseconds'}"
            own = [first.parents[1] / f"seed{seed}" / first.name for seed in SEEDS]
            line = told.get((name, what, kind))
            if done := [folder for folder in own if folder in folders]:
                parts = [times[folder] / times["full"] for folder in done]
                line = write_row(what, kind, [folders[folder] for folder in done], parts)
            elif left := next(filter(None, map(least, own)), None):
                line = f"| {what} | {kind} | out of reach: at least {left} stay | | | | | | |"
            lines += [line] if line else []
            if line and (point := told_point(line)):
                drawn[name].append((bound, part, kind, *point))
        lines.append("")
        drawn[name].append(("full", 1.0, "full", 1.0, accuracy))
    draw(drawn, HERE / "three_dimensions.png")
    PAGE.write_text("\n".join([*lines, PICTURE]) + before.partition(PICTURE)[2])
    print(PAGE.read_text())


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
        table()
