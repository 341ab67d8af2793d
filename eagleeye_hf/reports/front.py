"""The picture of a front. Needs matplotlib, from the extra `plots`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from eagleeye_hf.reports.result import ACCENT, DARK

KINDS = {
    "full": ("full network", "#1d2733", "*", 170),
    "chosen": ("chosen", ACCENT, "o", 70),
    "uniform": ("uniform strategy", "#edae49", "s", 55),
    "given": ("given", DARK, "o", 70),
}
"""Label, colour, marker and size of points."""


def draw_front(front: dict[str, Any], path: Path) -> Path:
    """Accuracy against measured milliseconds as PNG, one panel per runtime.

    Args:
        front: as `Front.to_dict` gives it.
    """
    rows = [row for row in front["rows"] if row["accuracy"] is not None]
    places = list(dict.fromkeys(place for row in rows for place in row["milliseconds"]))
    figure = Figure(figsize=(max(5.2, 4.6 * len(places)), 4.4), layout="constrained", dpi=130)
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, max(1, len(places)), squeeze=False, sharey=True)[0]
    for axes, place in zip(panels, places, strict=False):
        for kind, (label, color, marker, size) in KINDS.items():
            own = sorted((r["milliseconds"][place], 100 * r["accuracy"]) for r in rows if r["kind"] == kind)
            if own:
                x, y = zip(*own, strict=True)
                axes.plot(x, y, color=color, alpha=0.35, linewidth=1)
                axes.scatter(x, y, s=size, color=color, marker=marker, label=label, zorder=3, linewidths=0)
        axes.set(xlabel="milliseconds (measured)", xlim=(0, None))
        axes.margins(x=0.08, y=0.1)
        axes.set_title(place, fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.2)
    panels[0].set_ylabel(f"{front['reports']}, %")
    handles = {label: line for axes in panels for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    figure.suptitle(f"Accuracy against milliseconds ({front['images']})", fontsize=10)
    figure.savefig(path)
    return path
