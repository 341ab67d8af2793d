"""Pictures of a result. The only module that needs matplotlib, from the extra `plots`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from eagleeye_hf.channels.graph import ChannelGraph
from eagleeye_hf.evaluation.metrics import Metrics

LIGHT, DARK, ACCENT = "#c9d3de", "#2f6690", "#d1495b"
STAGE_COLORS = {"full": "#7d8b99", "vanilla": ACCENT, "adaptive": "#edae49", "fine-tuned": DARK}
MAX_NAMES = 40
"""More groups than this are numbered, not named."""


def draw_result(graph: ChannelGraph, widths: Sequence[int], metrics: dict[str, Metrics], path: Path) -> Path:
    """Top-1 after each step beside the channels that each group keeps, as PNG."""
    figure = Figure(figsize=(11, 3.6), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(1, 2.2))
    tops = [100 * m.top1 for m in metrics.values()]
    bars = left.bar(list(metrics), tops, color=[STAGE_COLORS.get(stage, DARK) for stage in metrics])
    left.bar_label(bars, [f"{top:.1f}" for top in tops], padding=2)
    left.set(title="Top-1 on the test images, %", ylim=(0, max([*tops, 1]) * 1.15))
    draw_widths(right, graph, widths)
    _bare(left, right)
    figure.savefig(path)
    return path


def draw_graph(graph: ChannelGraph, widths: Sequence[int], path: Path) -> Path:
    """The channels of each group, and how many of them stay, as PNG."""
    figure = Figure(figsize=(min(4 + 0.25 * len(graph.groups), 16), 4), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    draw_widths(axes, graph, widths)
    _bare(axes)
    figure.savefig(path)
    return path


def draw_widths(axes: Any, graph: ChannelGraph, widths: Sequence[int]) -> None:
    """Channels of each group in the order of execution, and how many of them stay."""
    channels = np.array(graph.widths)
    places = np.arange(len(channels))
    pinned = np.array([not group.prunable for group in graph.groups])
    if tuple(widths) != graph.widths:
        axes.bar(places, channels, color=LIGHT, label="removed")
    axes.bar(places, widths, color=DARK, label="kept")
    if pinned.any():
        axes.bar(places[pinned], channels[pinned], color="#9aa5b1", hatch="///", edgecolor="white", label="pinned")
    if len(channels) <= MAX_NAMES:
        axes.set_xticks(places, [group.name for group in graph.groups], rotation=60, ha="right", fontsize=7)
    else:
        axes.set_xlabel("channel group, in the order of execution")
    axes.set_title("Channels per group")
    axes.margins(x=0.01)
    axes.legend(frameon=False)


def _bare(*many: Any) -> None:
    for axes in many:
        axes.spines[["top", "right"]].set_visible(False)
