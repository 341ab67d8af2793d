"""Figures of a study, as PNG and SVG. Needs matplotlib, from the extra `plots`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from eagleeye_hf.reports.result import ACCENT, DARK, LIGHT, STEP_COLORS

FORMATS = ("png", "svg")
VARIANTS = ("vanilla", "adaptive", "compensated", "matched")
SCATTERED = ("vanilla top-1", "adaptive top-1", "adaptive loss", "matched loss", "parameters")
BUDGET_COLORS = (DARK, ACCENT, "#3caea3", "#edae49", "#7d5ba6", "#7d8b99")
METHOD_COLORS = {"uniform": "#edae49", "random": "#9aa5b1", "global": "#3caea3", "evolution": DARK}

Rows = Sequence[Mapping[str, Any]]


def draw_study(facts: Mapping[str, Any], folder: Path) -> dict[str, Path]:
    """Draw every figure of which there is a table; the PNG files, by what they show."""
    tables, paths = facts["tables"], {}
    figures = {
        "histograms": _draw_histograms(tables["subnets"], facts["budgets"]),
        "scatter": _draw_scatter(tables["subnets"], tables["correlation"], facts["budgets"]),
        "correlation": _draw_correlation(tables["correlation"], facts["budgets"]),
        "comparators": _draw_comparators(tables["comparators"], tables["subnets"], facts["budgets"]),
    }
    if tables["images"]:
        figures |= {
            "batchnorm": _draw_batchnorm(tables["batchnorm"], facts["budgets"]),
            "weights": _draw_weights(tables["weights"], facts["histograms"], facts["edges"], facts["budgets"]),
            "images": _draw_images(tables["images"], facts["budgets"]),
        }
    for name, figure in figures.items():
        for format in FORMATS:
            with rc_context({"svg.hashsalt": "eagleeye"}):  # the same numbers give the same file
                figure.savefig(folder / f"{name}.{format}", metadata={"Date": None} if format == "svg" else None)
        paths[name] = folder / f"{name}.png"
    return paths


def _panels(rows: int, columns: int, width: float, height: float, **shared: Any) -> tuple[Figure, np.ndarray]:
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, squeeze=False, **shared)
    for axes in panels.ravel():
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.2)
    return figure, panels


def _of(rows: Rows, budget: Any) -> list[Mapping[str, Any]]:
    return [row for row in rows if row["budget"] == budget]


def _draw_histograms(subnets: Rows, budgets: Sequence[str]) -> Figure:
    figure, panels = _panels(1, len(budgets), 6, 3.6)
    for number, (axes, budget) in enumerate(zip(panels[0], budgets, strict=True)):
        pool = [row for row in _of(subnets, number) if row["in_pool"]]
        columns = {name: f"{name} top-1" for name in VARIANTS} | {"fine-tuned": "test top-1"}
        values = {name: [100 * row[c] for row in pool] for name, c in columns.items() if c in pool[0]}
        edges = np.linspace(0, 5 * np.ceil(max(map(max, values.values())) / 5), 41)
        for name, found in values.items():
            axes.hist(found, edges, color=STEP_COLORS[name], alpha=0.75, label=name)
        axes.set(title=f"{budget}: {len(pool)} random sub-nets", xlabel="top-1, %", ylabel="sub-nets")
        axes.legend(frameon=False, fontsize=8)
    return figure


def _draw_scatter(subnets: Rows, correlation: Rows, budgets: Sequence[str]) -> Figure:
    shown = [name for name in SCATTERED if name == "parameters" or name in subnets[0]]
    figure, panels = _panels(len(budgets), len(shown), 2.9, 2.9)
    found = {(row["budget"], row["score"]): row for row in correlation}
    for number, budget in enumerate(budgets):
        pool = [row for row in _of(subnets, number) if row["in_pool"]]
        for axes, name in zip(panels[number], shown, strict=True):
            x = [row["params"] / 1e6 if name == "parameters" else row[name] for row in pool]
            axes.scatter(x, [100 * row["test top-1"] for row in pool], s=18, color=DARK, alpha=0.8, linewidths=0)
            told = found[budget, name]["spearman"]
            axes.set_title("it does not vary" if told is None else f"Spearman {told:.2f}", fontsize=9)
            axes.set_xlabel("parameters, M" if name == "parameters" else name, fontsize=9)
            axes.tick_params(labelsize=7)
        panels[number, 0].set_ylabel(f"{budget}\ntest top-1 after fine-tuning, %", fontsize=9)
    return figure


def _draw_correlation(correlation: Rows, budgets: Sequence[str]) -> Figure:
    order = [row["score"] for row in _of(correlation, budgets[0]) if "spearman" in row][::-1]
    figure, panels = _panels(1, 2, 5.6, 1 + 0.27 * len(order), sharey=True)
    for axes, name, label in zip(panels[0], ("spearman", "regret"), ("Spearman", "regret, points"), strict=True):
        for number, budget in enumerate(budgets):
            rows = {row["score"]: row for row in _of(correlation, budget)}
            values = np.array([[rows[s][name + end] for end in ("", "_low", "_high")] for s in order], dtype=float)
            places = np.arange(len(order)) + 0.22 * (number - (len(budgets) - 1) / 2)
            color = BUDGET_COLORS[number % len(BUDGET_COLORS)]
            axes.hlines(places, values[:, 1], values[:, 2], color=color, alpha=0.45)
            axes.plot(values[:, 0], places, "o", color=color, markersize=4, label=budget)
        axes.set_yticks(range(len(order)), order, fontsize=8)
        axes.set_xlabel(f"{label} (90% interval)")
    panels[0, 0].axvline(0, color=LIGHT, zorder=0)
    panels[0, 0].legend(frameon=False, fontsize=8, loc="lower left")
    return figure


def _draw_comparators(comparators: Rows, subnets: Rows, budgets: Sequence[str]) -> Figure:
    figure, panels = _panels(1, len(budgets), 4.6, 3.2)
    for number, (axes, budget) in enumerate(zip(panels[0], budgets, strict=True)):
        rows = _of(comparators, budget)
        pool = [100 * row["test top-1"] for row in _of(subnets, number) if row["in_pool"]]
        axes.scatter(pool, np.full(len(pool), -0.8), s=14, color=LIGHT, label="random sub-nets")
        for place, row in enumerate(rows):
            axes.plot(100 * row["test top-1"], place, "o", color=METHOD_COLORS.get(row["method"], DARK), markersize=9)
        axes.set_yticks(range(-1, len(rows)), ["pool", *(row["method"] for row in rows)])
        axes.set(title=budget, xlabel="test top-1 after fine-tuning, %")
    return figure


def _draw_batchnorm(batchnorm: Rows, budgets: Sequence[str]) -> Figure:
    figure, panels = _panels(1, 2, 5.6, 3.4)
    for axes, kind, label in zip(
        panels[0],
        ("mean", "variance"),
        ("means, standard deviations apart", "variances, difference of logarithms"),
        strict=True,
    ):
        for number, budget in enumerate(budgets):
            rows, color = _of(batchnorm, budget), BUDGET_COLORS[number % len(BUDGET_COLORS)]
            for statistics, style in (("full", "--"), ("adaptive", "-")):
                y = [max(row[f"{kind}_{statistics}"], 1e-4) for row in rows]
                axes.plot([r["depth"] for r in rows], y, style, color=color, label=f"{statistics} network's, {budget}")
        axes.set(xlabel="BatchNorm layer, in the order of the network", ylabel=label, yscale="log")
        axes.xaxis.get_major_locator().set_params(integer=True)
    labels = panels[0, 0].get_legend_handles_labels()
    shown = [label.replace("adaptive network's", "adaptive") for label in labels[1]]
    panels[0, 0].legend(labels[0], shown, frameon=False, fontsize=7)
    figure.suptitle("Distance of statistics from those after fine-tuning", fontsize=10)
    return figure


def _draw_weights(
    weights: Rows, histograms: Mapping[str, Any], edges: Sequence[float], budgets: Sequence[str]
) -> Figure:
    figure, panels = _panels(1, 1 + len(budgets), 4.4, 3.4)
    for axes, budget in zip(panels[0], budgets, strict=False):
        for when, color in (("before", LIGHT), ("after", ACCENT)):
            axes.stairs(
                histograms[budget][when], edges, color=color, fill=when == "before", label=f"{when} fine-tuning"
            )
        axes.set(title=budget, xlabel="weight, standard deviations of its layer", ylabel="part of all weights")
        axes.legend(frameon=False, fontsize=7)
    last = panels[0, -1]
    for number, budget in enumerate(budgets):
        rows, color = _of(weights, budget), BUDGET_COLORS[number % len(BUDGET_COLORS)]
        depths = [row["depth"] for row in rows]
        last.plot(depths, [row["change"] for row in rows], color=color, label=f"length of the change, {budget}")
        last.plot(depths, [row["distance"] for row in rows], "--", color=color, label=f"Wasserstein distance, {budget}")
    last.set(xlabel="layer, in the order of the network", ylabel="relative to the layer's weights", ylim=(0, None))
    last.xaxis.get_major_locator().set_params(integer=True)
    last.legend(frameon=False, fontsize=7, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure


def _draw_images(images: Rows, budgets: Sequence[str]) -> Figure:
    figure, panels = _panels(1, 4, 3.9, 3.3)
    for number, budget in enumerate(budgets):
        rows, color = _of(images, budget), BUDGET_COLORS[number % len(BUDGET_COLORS)]
        most = {name: max(row[name] for row in rows) for name in ("calibration_images", "holdout_images")}
        for form, style in (("exact", "-"), ("momentum", ":")):
            own = [row for row in rows if row["form"] == form]
            by_calibration = [row for row in own if row["holdout_images"] == most["holdout_images"]]
            by_holdout = [row for row in own if row["calibration_images"] == most["calibration_images"]]
            _line(panels[0, 0], by_calibration, "calibration_images", "spearman", color, style, f"{form}, {budget}")
            _line(panels[0, 1], by_holdout, "holdout_images", "spearman", color, style, "")
            noisy = [row for row in by_calibration if row["noise"] is not None]
            _line(panels[0, 2], noisy, "calibration_images", "noise", color, style, "")
            _line(panels[0, 3], by_calibration, "calibration_images", "seconds", color, style, "")
    labels = (
        "Spearman of the adaptive loss",
        "Spearman of the adaptive loss",
        "noise / spread of sub-nets",
        "seconds a score",
    )
    for axes, label in zip(panels[0], labels, strict=True):
        axes.set_ylabel(label)
        axes.set_xscale("log", base=2)
    panels[0, 0].legend(frameon=False, fontsize=7)
    return figure


def _line(axes: Any, rows: Rows, x: str, y: str, color: str, style: str, label: str) -> None:
    points = [(row[x], row[y]) for row in rows]
    if points:
        axes.plot(*zip(*points, strict=True), style, color=color, marker=".", label=label or None)
    axes.set_xlabel(x.replace("_", " "))
