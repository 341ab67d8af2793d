"""Pictures of a search. Needs matplotlib, from the extra `plots`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from eagleeye_hf.reports.result import ACCENT, DARK, LIGHT, MAX_NAMES
from eagleeye_hf.search.candidate import Candidate
from eagleeye_hf.search.reading import SearchRecord, expected_values

ORIGINS = {"random": "#9aa5b1", "evolution": DARK, "uniform": "#edae49", "global": "#3caea3"}
ORIGINS |= {"depth": "#7a5195", "size": "#ef5675"}
PICTURES = ("search_scores.png", "search_widths.png", "search_ratios.png")
LEADERS = 10
PANELS = 12
"""Groups whose ratios are drawn against the loss, those that matter most."""


def draw_search(record: SearchRecord, folder: Path) -> dict[str, Path]:
    """Draw the three pictures of a search as PNG; by what they show.

    Raises:
        EagleEyeError: the journal holds values that no search writes.
    """
    with expected_values():
        pictures = {"scores": _draw_scores(record), "widths": _draw_leaders(record), "ratios": _draw_ratios(record)}
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    for name, figure in pictures.items():
        paths[name] = folder / f"search_{name}.png"
        figure.savefig(paths[name])
    return paths


def _draw_scores(record: SearchRecord) -> Figure:
    """Loss of every candidate against what it costs."""
    full = record.settings["full"]
    scored = [c for c in record.candidates if c.index in record.first_losses]
    timed = [c for c in scored if c.milliseconds is not None]
    panels: list[tuple[str, list, Any]] = [
        ("MACs, % of the full network", scored, lambda c: 100 * c.cost.macs / full["macs"]),
        ("parameters, % of the full network", scored, lambda c: 100 * c.cost.params / full["params"]),
    ]
    if timed:
        panels.append(("latency of one image, ms", timed, lambda c: c.milliseconds))
    figure = _figure(4.2 * len(panels), 4.4)
    best = {record.leaders(number)[0].index for number in range(record.num_budgets) if record.leaders(number)}
    for number, (axes, (label, shown, cost)) in enumerate(zip(_row(figure, len(panels)), panels, strict=True)):
        for origin in dict.fromkeys(c.origin for c in shown):
            drawn = [c for c in shown if c.origin == origin]
            x, y = [cost(c) for c in drawn], [record.first_losses[c.index] for c in drawn]
            axes.scatter(x, y, s=18, alpha=0.7, color=ORIGINS.get(origin, DARK), label=origin, linewidths=0)
        winners = [c for c in shown if c.index in best]
        x, y = [cost(c) for c in winners], [record.first_losses[c.index] for c in winners]
        axes.scatter(x, y, s=110, facecolors="none", edgecolors=ACCENT, linewidths=2, label="chosen")
        axes.set(xlabel=label, ylabel="holdout loss, first stage" if number == 0 else "")
        axes.spines[["top", "right"]].set_visible(False)
        axes.ticklabel_format(useOffset=False)
    known = record.prepared.full
    told = f" (the full network has {known.adaptive.loss:.3f} on all images)" if known else ""
    figure.suptitle(f"Every candidate: loss on the first images against what it costs{told}", fontsize=11)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=8)
    return figure


def _draw_leaders(record: SearchRecord) -> Figure:
    """The fraction of channels that each leader keeps, per group."""
    chosen = [c for number in range(record.num_budgets) for c in record.leaders(number)[:LEADERS]]
    groups = record.settings["groups"]
    figure = _figure(min(4 + 0.3 * len(groups), 18), 1.8 + 0.26 * max(len(chosen), 1))
    axes = figure.subplots()
    if not chosen:
        axes.set_title("no candidate has a score")
        return figure
    kept = 100 * record.kept_fractions(chosen)
    pinned = ~np.array(record.settings["prunable"], dtype=bool)
    colors = colormaps["viridis"].with_extremes(bad=LIGHT)
    shown = np.ma.array(kept, mask=np.broadcast_to(pinned, kept.shape))
    image = axes.imshow(shown, aspect="auto", cmap=colors, vmin=0, vmax=100)
    figure.colorbar(image, ax=axes, label="channels kept, %", pad=0.01)
    several = record.num_budgets > 1
    names = [f"{record.budget_name(c.budget)}: " if several else "" for c in chosen]
    losses = [c.score.loss for c in chosen if c.score]
    axes.set_yticks(
        range(len(chosen)),
        [f"{name}{c.index} ({loss:.3f}){_size(c)}" for name, c, loss in zip(names, chosen, losses, strict=True)],
        fontsize=7,
    )
    axes.set_ylabel("candidate (loss), best first")
    if len(groups) <= MAX_NAMES:
        axes.set_xticks(range(len(groups)), groups, rotation=60, ha="right", fontsize=7)
        widths = np.array([c.strategy.widths for c in chosen])
        for (row, column), width in np.ndenumerate(widths):
            color = "white" if kept[row, column] < 60 and not pinned[column] else "black"
            axes.text(
                column, row, str(width) if kept[row, column] else "–", ha="center", va="center", fontsize=6, color=color
            )
    else:
        axes.set_xlabel("channel group, in the order of execution")
    for row in range(1, len(chosen)):
        if chosen[row].budget != chosen[row - 1].budget:
            axes.axhline(row - 0.5, color="white", linewidth=5)
    gone = any(c.strategy.removed_blocks for c in chosen)
    notes = [*(["gray: pinned"] if pinned.any() else []), *(["–: gone with its block"] if gone else [])]
    axes.set_title("Widths of the leaders" + (f" ({', '.join(notes)})" if notes else ""))
    return figure


def _size(candidate: Candidate) -> str:
    """The image size, where it is not the network's own."""
    return "" if candidate.strategy.image_size is None else f", {candidate.strategy.image_size} px"


def _draw_ratios(record: SearchRecord) -> Figure:
    """For the groups that matter most: the loss against the fraction of channels removed, and the trend."""
    scored = [c for c in record.candidates if c.index in record.first_losses and c.origin != "uniform"]
    kept = record.kept_fractions(scored) if scored else np.ones((0, len(record.settings["groups"])))
    losses = np.array([record.first_losses[c.index] for c in scored])
    budgets = np.array([c.budget for c in scored])
    for budget in set(budgets.tolist()):  # budgets differ in loss as a whole; what counts is the rest
        losses[budgets == budget] -= losses[budgets == budget].mean()
    effects = ratio_effects(1 - kept, losses)
    order = [int(i) for i in np.argsort(-np.abs(effects)) if effects[i]][:PANELS]
    columns = 4
    rows = max(1, -(-len(order) // columns))
    figure = _figure(12, 2.3 * rows + 0.6)
    figure.suptitle("What removing channels did to the loss (mean of the search = 0), strongest groups first")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    for axes, group in zip(grid, order, strict=False):
        removed = 100 * (1 - kept[:, group])
        axes.scatter(removed, losses, s=6, color=LIGHT)
        edges = np.unique(np.quantile(removed, np.linspace(0, 1, 7)))
        places = np.clip(np.digitize(removed, edges[1:-1]), 0, len(edges) - 2)
        bins = [b for b in range(len(edges) - 1) if (places == b).any()]
        if len(bins) > 1:  # a point is no trend
            x, y = ([values[places == b].mean() for b in bins] for values in (removed, losses))
            axes.plot(x, y, "o-", color=ACCENT)
        axes.set_title(f"{record.settings['groups'][group]} (r = {effects[group]:+.2f})", fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=7)
    for axes in grid[len(order) :]:
        axes.set_axis_off()
    figure.supxlabel("channels removed, %", fontsize=9)
    figure.supylabel("loss", fontsize=9)
    return figure


def ratio_effects(ratios: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """Correlation of each group's ratio with the loss; 0 where the ratio never changes."""
    if len(losses) < 3:
        return np.zeros(ratios.shape[1])
    x, y = ratios - ratios.mean(0), losses - losses.mean()
    scale = np.sqrt((x**2).sum(0) * (y**2).sum())
    return np.where(scale > 1e-12, (x * y[:, None]).sum(0) / np.maximum(scale, 1e-12), 0.0)


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained", dpi=130)
    FigureCanvasAgg(figure)
    return figure


def _row(figure: Figure, count: int) -> list[Any]:
    return list(figure.subplots(1, count, squeeze=False)[0])
