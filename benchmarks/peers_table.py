"""The table and the picture of `search_vs_peers.py`, from the JSON files of its steps."""

from __future__ import annotations

import json
import statistics
import textwrap
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

NAMES = {
    "paper": "EagleEye's procedure on Torch-Pruning",
    "fastnas": "NVIDIA ModelOpt FastNAS",
    "ours": "eagleeye_hf",
}
COLORS = {"paper": "#7d8b99", "fastnas": "#edae49", "ours": "#2f6690"}
MODELS = {"resnet20_cifar": "ResNet-20", "resnet56_cifar": "ResNet-56"}


def write_table(folder: Path, markdown: Path, picture: Path) -> None:
    results = {(model, arm): _read(folder / f"{model}_{arm}") for model in MODELS for arm in NAMES}
    lines = [
        "# Search against peers",
        "",
        "Made by `search_vs_peers.py`: half the MACs of networks trained on CIFAR-10 (JPEG); every method has one core "
        "and the same time to choose (FastNAS ends by itself). Then every choice is fine-tuned alike: 3 epochs of "
        "40,000 images, labels only, SGD, cosine from the given learning rate, float32; top-1 on 10,000 test images.",
        "",
    ]
    for model, title in MODELS.items():
        own = {arm: results[model, arm] for arm in NAMES if "search" in results.get((model, arm), {})}
        if own:
            lines += [f"## {title}", "", *_rows(own), ""]
    speeds = {arm: folder / f"mobilenetv1_224_{arm}.json" for arm in NAMES}
    lines += _speed_rows({arm: json.loads(file.read_text()) for arm, file in speeds.items() if file.exists()})
    markdown.write_text("\n".join(lines).rstrip() + "\n")
    _draw({key: result for key, result in results.items() if result.get("finetuned")}, picture)
    print(markdown.read_text())


def _read(folder: Path) -> dict[str, Any]:
    found = {"search": json.loads((folder / "search.json").read_text())} if (folder / "search.json").exists() else {}
    runs = [json.loads(path.read_text()) for path in sorted(folder.glob("finetuned_*.json"))]
    return found | ({"finetuned": runs} if runs else {})


def _by_lr(runs: list[dict[str, float]]) -> dict[float, list[float]]:
    """Top-1 per seed, per learning rate."""
    found: dict[float, list[float]] = {}
    for run in runs:
        found.setdefault(run["lr"], []).append(run["top1"])
    return found


def _rows(own: dict[str, dict[str, Any]]) -> list[str]:
    rates = sorted({run["lr"] for result in own.values() for run in result.get("finetuned", [])})
    lines = [
        "| | candidates per hour | scored | time to a choice | MACs | parameters | top-1 before training |"
        + "".join(f" after 3 epochs at {lr:g}, per seed | mean |" for lr in rates),
        "|---|---:|---:|---:|---:|---:|---:|" + "---:|---:|" * len(rates),
    ]
    for arm, result in own.items():
        found, tuned = result["search"], result.get("finetuned", [])
        tops = _by_lr(tuned)
        cells = [
            NAMES[arm],
            f"{found['candidates_per_hour']:,.0f}",
            f"{found['candidates']:,}",
            f"{found['seconds'] / 60:.1f} min",
            f"{found['macs']:.1%}",
            f"{found['params']:.1%}",
            f"{tuned[0]['before']:.2%}" if tuned else "",
        ]
        for lr in rates:
            seeds = tops.get(lr, [])
            cells += [", ".join(f"{top:.2%}" for top in seeds), f"{statistics.mean(seeds):.2%}" if seeds else ""]
        lines.append("| " + " | ".join(cells) + " |")
    if {"paper", "ours"} <= own.keys():
        ratio = own["ours"]["search"]["candidates_per_hour"] / own["paper"]["search"]["candidates_per_hour"]
        lines += ["", f"Candidates per hour, ours to the paper's procedure: {ratio:.0f} to 1."]
    return lines


def _speed_rows(speeds: dict[str, dict[str, float]]) -> list[str]:
    if not speeds:
        return []
    lines = [
        "## MobileNetV1 at 224 px, speed alone",
        "",
        "Estimates: the paper's procedure from 256 timed images and 3% of draws accepted, ours from 8 candidates.",
        "",
        "| | seconds per candidate | candidates per hour |",
    ]
    lines.append("|---|---:|---:|")
    for arm, speed in speeds.items():
        lines.append(f"| {NAMES[arm]} | {speed['seconds_per_candidate']:.1f} | {speed['candidates_per_hour']:,.1f} |")
    if len(speeds) == 2:
        ratio = speeds["ours"]["candidates_per_hour"] / speeds["paper"]["candidates_per_hour"]
        lines += ["", f"Ours to the paper's procedure: {ratio:.0f} to 1."]
    return lines


def _draw(results: dict[tuple[str, str], dict[str, Any]], picture: Path) -> None:
    """Fine-tuned top-1 of each choice, and how many candidates stood behind it."""
    if not results:
        return
    figure = Figure(figsize=(9, 3.6), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(MODELS))
    for axes, (model, title) in zip(panels, MODELS.items(), strict=True):
        arms = [arm for arm in NAMES if (model, arm) in results]
        for place, arm in enumerate(arms):
            result = results[model, arm]
            tops = _by_lr(result["finetuned"])
            for i, lr in enumerate(sorted(tops)):
                values, at = [100 * top for top in tops[lr]], place + 0.4 * (i - (len(tops) - 1) / 2)
                axes.plot([at] * len(values), values, "o", color=COLORS[arm], markersize=6)
                axes.hlines(statistics.mean(values), at - 0.15, at + 0.15, color=COLORS[arm], linewidth=2)
                axes.annotate(
                    f"lr {lr:g}", (at, min(values)), (0, -14), textcoords="offset points", ha="center", fontsize=6
                )
        labels = [
            f"{textwrap.fill(NAMES[arm], 22)}\n{results[model, arm]['search']['candidates']:,} candidates"
            for arm in arms
        ]
        axes.margins(y=0.12)
        axes.set_xticks(range(len(arms)), labels, fontsize=7)
        axes.set(title=title, ylabel="top-1 after the same fine-tuning, %", xlim=(-0.5, max(len(arms) - 0.5, 0.5)))
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(picture)
