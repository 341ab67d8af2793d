"""Pictures of a result. The only module that needs matplotlib, from the extra `plots`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from eagleeye_hf.channels.graph import ChannelGraph
from eagleeye_hf.evaluation.metrics import Metrics
from eagleeye_hf.strategies.strategy import Strategy

LIGHT, DARK, ACCENT = "#c9d3de", "#2f6690", "#d1495b"
STEP_COLORS = {
    "full": "#7d8b99",
    "vanilla": ACCENT,
    "adaptive": "#edae49",
    "compensated": "#9ab973",
    "matched": "#4f9d8f",
    "fine-tuned": DARK,
}
MAX_NAMES = 40
"""More groups than this are numbered, not named."""


def draw_result(
    graph: ChannelGraph,
    strategy: Strategy,
    metrics: Mapping[str, Metrics],
    path: Path,
    curve: Sequence[Mapping[str, float]] = (),
    steps: Mapping[str, Metrics] | None = None,
    reports: str = "top-1",
) -> Path:
    """Top-1 after each step, the channels that each group keeps and, where there is one, the training curve, as PNG.

    Args:
        metrics: on the test images, the full network first, the result last.
        steps: between the two, on the holdout images.
    """
    curve = curve if len(curve) > 1 else ()  # a point is no curve
    figure = Figure(figsize=(9, 6.6), layout="constrained", dpi=150)  # to be read at the width of a page
    FigureCanvasAgg(figure)
    above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=(1, 1.15))[:, 0]
    first, *rest = above.subplots(1, 2 if curve else 1, squeeze=False)[0]
    widths = below.subplots()
    draw_steps(first, metrics, steps or {}, reports)
    draw_widths(widths, graph, strategy)
    if curve:
        draw_curve(rest[0], curve)
    _bare(first, widths)
    figure.savefig(path)
    return path


def draw_steps(axes: Any, metrics: Mapping[str, Metrics], steps: Mapping[str, Metrics], reports: str) -> None:
    """Top-1, or agreement, of the full network, after each step, and of the result."""
    tested = [(name, found, "") for name, found in metrics.items()]
    ordered = [*tested[:1], *((name, found, "//") for name, found in steps.items()), *tested[1:]]
    tops = [100 * found.top1 for _, found, _ in ordered]
    colors = [STEP_COLORS.get(name, DARK) for name, _, _ in ordered]
    bars = axes.bar(range(len(ordered)), tops, color=colors, edgecolor="white", hatch=[hatch for *_, hatch in ordered])
    axes.set_xticks(range(len(ordered)), [name for name, *_ in ordered])
    axes.bar_label(bars, [f"{top:.1f}" for top in tops], padding=2)
    axes.set(
        title="What each step gave" if steps else f"{reports.capitalize()} on the test images", ylabel=f"{reports}, %"
    )
    axes.set_ylim(0, max([*tops, 1]) * 1.15)
    axes.tick_params(axis="x", rotation=30)
    if steps:
        axes.set_xlabel("hatched: on the holdout images; else on the test images", fontsize=8)


def draw_curve(axes: Any, curve: Sequence[Mapping[str, float]]) -> None:
    """Training loss per epoch and, on an axis of its own, top-1 on the held-out images where it was measured."""
    lines = axes.plot([p["epoch"] for p in curve], [p["loss"] for p in curve], color=DARK, marker=".", label="loss")
    axes.set(title="Fine-tuning", xlabel="epoch", ylabel="training loss")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.spines[["top"]].set_visible(False)
    measured = [point for point in curve if "top1" in point]
    if measured:
        right = axes.twinx()
        tops = [100 * point["top1"] for point in measured]
        lines += right.plot([p["epoch"] for p in measured], tops, color=ACCENT, marker=".", label="top-1")
        right.set_ylabel("top-1 on held-out images, %")
        right.spines[["top"]].set_visible(False)
    axes.legend(handles=lines, frameon=False, loc="center right")


def draw_graph(graph: ChannelGraph, strategy: Strategy, path: Path) -> Path:
    """The channels of each group, and how many of them stay, as PNG."""
    figure = Figure(figsize=(min(4 + 0.25 * len(graph.groups), 16), 4), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    draw_widths(axes, graph, strategy)
    _bare(axes)
    figure.savefig(path)
    return path


def draw_widths(axes: Any, graph: ChannelGraph, strategy: Strategy) -> None:
    """Channels of each group in the order of execution, and how many of them stay."""
    channels = np.array(graph.widths)
    places = np.arange(len(channels))
    pinned = np.array([not group.prunable for group in graph.groups])
    gone, kept = sorted(graph.gone_groups(strategy.removed_blocks)), np.array(strategy.widths)
    kept[gone], pinned[gone] = 0, False
    if (kept < channels).any():
        axes.bar(places, channels, color=LIGHT, label="removed")
    axes.bar(places, kept, color=DARK, label="kept")
    if gone:
        axes.bar(places[gone], channels[gone], color=LIGHT, hatch="xxx", edgecolor=ACCENT, label="gone with its block")
    if pinned.any():
        axes.bar(places[pinned], channels[pinned], color="#9aa5b1", hatch="///", edgecolor="white", label="pinned")
    if len(channels) <= MAX_NAMES:
        axes.set_xticks(places, [group.name for group in graph.groups], rotation=60, ha="right", fontsize=7)
    else:
        axes.set_xlabel("channel group, in the order of execution")
    axes.set(title="Channels per group, in the order of execution", ylabel="channels")
    axes.margins(x=0.01)
    axes.legend(frameon=False)


def _bare(*many: Any) -> None:
    for axes in many:
        axes.spines[["top", "right"]].set_visible(False)
