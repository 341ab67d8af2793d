"""One self-contained HTML page about a search. A journal may be a stranger's: whatever it says is text there."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from eagleeye_hf.search.candidate import Candidate
from eagleeye_hf.search.diagnosis import diagnose_full_model, diagnose_scores
from eagleeye_hf.search.reading import SearchRecord, expected_values

SHOWN = 25
CAPTIONS = {
    "front": "What was chosen, measured in every runtime",
    "scores": "Every candidate: holdout loss against what it costs",
    "widths": "Channels that the leaders keep, per group",
    "ratios": "What the ratios of each group did to the loss",
}
FRAME_HEADS = ("blocks gone", "image size")
HEADS = ("index", "origin", "loss", "{reports}", "images", "MACs", "parameters", "latency, ms")
TEMPLATE = "search_page.html.jinja"


def write_page(facts: Mapping[str, Any], pictures: Mapping[str, Path], path: Path) -> Path:
    """Write the page about what `describe_search` says, pictures inside; it needs nothing from elsewhere."""
    images = [
        {"caption": CAPTIONS[name], "data": base64.b64encode(picture.read_bytes()).decode()}
        for name, picture in pictures.items()
    ]
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=False)
    path.write_text(environment.get_template(TEMPLATE).render(pictures=images, **facts), encoding="utf-8")
    return path


RANKS = (
    "All candidates are scored on the same few images, the best of them on more, the best of those on all. Candidates "
    "scored on more images come first, then the lower loss: losses on different numbers of images can't be compared. "
    "Those measured beyond their budget's milliseconds come last. Marked: what was chosen. Click a head to sort."
)
"""What the order of the tables means."""


def describe_search(record: SearchRecord, run: Mapping[str, Any] | None = None, job: str = "search") -> dict[str, Any]:
    """What the page shows, without its pictures.

    Args:
        run: the settings of the run that searched, as its `run.yaml` has them.
        job: the command that searched.
    Raises:
        EagleEyeError: the journal holds values that no search writes.
    """
    with expected_values():
        return _facts(record, run or {}, job)


def _facts(record: SearchRecord, run: Mapping[str, Any], job: str) -> dict[str, Any]:
    full = record.prepared.full
    notes = [diagnose_full_model(full)] if full else []
    notes.append(diagnose_scores(record.candidates, full))
    budgets = "; ".join(record.budget_name(number) for number in range(record.num_budgets))
    network = f"{run['model']} on {Path(str(run['dataset'])).name}" if run.get("model") and run.get("dataset") else ""
    return {
        "title": f"Search: {network}, {budgets}" if network else f"Search for thin networks, {budgets}",
        "command": f"eagleeye {job} --config run.yaml" if network else "",
        "ranks": RANKS,
        "summary": _summary(record),
        "notes": [note for note in notes if note],
        "heads": [
            record.prepared.reports if head == "{reports}" else head
            for head in (*HEADS, *(FRAME_HEADS if is_framed(record) else ()))
        ],
        "tables": [
            {
                "budget": record.budget_name(number),
                "rows": [
                    {"kind": "" if place else "chosen", "cells": _cells(record, candidate)}
                    for place, candidate in enumerate(record.leaders(number)[:SHOWN])
                ]
                + _full_row(record),
            }
            for number in range(record.num_budgets)
        ],
    }


def _summary(record: SearchRecord) -> list[str]:
    settings = record.settings
    failed = sum(not candidate.scored for candidate in record.candidates)
    lines = [
        f"{len(record.candidates)} candidates in {record.elapsed / 60:.1f} minutes, "
        f"{3600 * len(record.candidates) / max(record.elapsed, 1e-9):,.0f} per hour"
        + (f"; {failed} could not be scored" if failed else ""),
        ", ".join(f"{name} {settings[name]}" for name in ("method", "criterion", "seed") if name in settings),
    ]
    full = record.prepared.full
    if full:
        name = record.prepared.reports
        lines.append(
            f"full network on the same holdout images: {name} {full.unchanged.reported:.2%}, "
            f"loss {full.unchanged.loss:.4f}; with recomputed statistics {full.adaptive.reported:.2%}, "
            f"{full.adaptive.loss:.4f}"
        )
    return lines


def _full_row(record: SearchRecord) -> list[dict[str, Any]]:
    """The full network with recomputed statistics, as the last row of a table."""
    full, latency = record.prepared.full, record.prepared.latency
    if full is None:
        return []
    milliseconds = latency.full_ms if latency is not None else ""
    cells = [
        ("", ""),
        ("full network", "full network"),
        (full.adaptive.loss, f"{full.adaptive.loss:.4f}"),
        (full.adaptive.reported, f"{full.adaptive.reported:.2%}"),
        (full.adaptive.num_images, str(full.adaptive.num_images)),
        (record.settings["full"]["macs"], "100.0%"),
        (record.settings["full"]["params"], "100.0%"),
        (milliseconds, f"{milliseconds:.2f}" if latency is not None else ""),
    ]
    if is_framed(record):
        size = record.settings["image_size"]
        cells += [(0, "0"), (size, str(size))]
    return [{"kind": "full", "cells": [{"value": value, "text": text} for value, text in cells]}]


def _cells(record: SearchRecord, candidate: Candidate) -> list[dict[str, object]]:
    full, score, latency = record.settings["full"], candidate.score, candidate.milliseconds
    assert score is not None, "leaders have scores"
    cells = [
        (candidate.index, str(candidate.index)),
        (candidate.origin, candidate.origin),
        (score.loss, f"{score.loss:.4f}"),
        (score.reported, f"{score.reported:.2%}"),
        (score.num_images, str(score.num_images)),
        (candidate.cost.macs, f"{candidate.cost.macs / full['macs']:.1%}"),
        (candidate.cost.params, f"{candidate.cost.params / full['params']:.1%}"),
        ("" if latency is None else latency, "" if latency is None else f"{latency:.2f}"),
    ]
    if is_framed(record):
        strategy = candidate.strategy
        size = strategy.image_size or record.settings["image_size"]
        cells += [(len(strategy.removed_blocks), str(len(strategy.removed_blocks))), (size, str(size))]
    return [{"value": value, "text": text} for value, text in cells]


def is_framed(record: SearchRecord) -> bool:
    """Whether blocks could go or images shrink."""
    return any(c.strategy.removed_blocks or c.strategy.image_size for c in record.candidates)
