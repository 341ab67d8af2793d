"""Networks side by side, each as it is saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from eagleeye_hf.channels.cost import count_cost
from eagleeye_hf.data.config import DatasetConfig
from eagleeye_hf.data.measured import open_test
from eagleeye_hf.evaluation.metrics import evaluate_model
from eagleeye_hf.networks.description import describe_input
from eagleeye_hf.publishing.checkpoint import state_bytes
from eagleeye_hf.publishing.config import CONFIG, read_config
from eagleeye_hf.runs.front import Front, FrontRow
from eagleeye_hf.runs.job import FULL
from eagleeye_hf.runs.measuring import deployments, left_out, warn_noisy
from eagleeye_hf.runs.models import find_checkpoint, load_model, open_model
from eagleeye_hf.runtimes.config import LatencyConfig
from eagleeye_hf.runtimes.latency import Latency, compare_programs, draw_images
from eagleeye_hf.telling import warn
from eagleeye_hf.tracing.trace import trace_model


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A network to compare."""

    name: str
    model: nn.Module
    kind: str = "given"
    has_weights: bool = True
    told_top1: float | None = None
    """As a checkpoint tells it of its full network, whose weights are not at hand."""
    told_on: Mapping[str, Any] = field(default_factory=dict)
    """Of which images that is."""


def open_entries(names: Sequence[str], weights: str | None = None) -> list[Entry]:
    """Load the networks; where the first is a pruned one, the full one goes before them.

    Unless a run has kept it, its weights are not at hand. Milliseconds don't depend on them; its top-1 is the one that
    the checkpoint tells.

    Raises:
        EagleEyeError: a network can't be loaded.
    """
    entries = list[Entry]()
    for name in names:
        folder = find_checkpoint(name)
        model = load_model(name, None if folder else weights).eval()
        entries.append(Entry(name=name, model=model, kind="given" if folder or entries else "full"))
    kept = Path(names[0]) / FULL
    if entries[0].kind != "full" and (kept / CONFIG).is_file():
        entries.insert(0, Entry(name=f"full network ({kept})", model=load_model(str(kept)).eval(), kind="full"))
    elif entries[0].kind != "full":
        history = read_config(found)["eagleeye"] if (found := find_checkpoint(names[0])) else {}
        base, _ = open_model(names[0])
        told = ((history.get("metrics") or {}).get("full") or {}).get("top1") if history.get("labelled", True) else None
        name = f"full network ({history.get('base_model', 'unpruned')})"
        full = Entry(name=name, model=base.eval(), kind="full", has_weights=False, told_top1=told)
        entries.insert(0, replace(full, told_on=history.get("tested_on") or {}))
    return entries


def compare_models(
    entries: Sequence[Entry], data: DatasetConfig | None, split: str | None, measuring: LatencyConfig
) -> Front:
    """Measure networks side by side, each on images of its own size.

    Args:
        data: the dataset that top-1 is measured on; None: it is not.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for entry in entries:
        entry.model.to(device)
    times = _time_all(entries, measuring, device)
    rows, tested, where = list[FrontRow](), "", dict[str, Any]()
    for place, entry in enumerate(entries):
        size = describe_input(entry.model)
        graph = trace_model(entry.model, size)
        cost = count_cost(graph, graph.widths)
        accuracy = entry.told_top1
        if data is not None and entry.has_weights:
            accuracy, tested, where = _test(entry.model, data, split, device)
        rows.append(
            FrontRow(
                name=entry.name,
                kind=entry.kind,
                macs=int(cost.macs),
                params=int(cost.params),
                accuracy=accuracy,
                milliseconds={str(several[place].place): several[place].milliseconds for several in times},
                file_bytes=state_bytes(entry.model),
            )
        )
    told_on = {key: entries[0].told_on.get(key) for key in where}
    if where and not entries[0].has_weights and told_on != where:  # it would stand beside those of other images
        rows[0] = replace(rows[0], accuracy=None)
    taken_over = rows[0].accuracy is not None and not entries[0].has_weights
    told = "; the full network's as the first checkpoint tells it" if taken_over else ""
    return Front(rows=tuple(rows), reports="top-1", images=(tested or "images that checkpoints name") + told)


def _time_all(entries: Sequence[Entry], measuring: LatencyConfig, device: torch.device) -> list[list[Latency]]:
    """Per runtime, one record per network, the first against itself."""
    found = []
    for runtime in deployments(measuring, device):
        with left_out(runtime):
            programs = [
                runtime.load(entry.model, draw_images(runtime, describe_input(entry.model))) for entry in entries
            ]
            found.append(compare_programs(programs[0], programs, runtime.place))
    warn_noisy(latency for several in found for latency in several)
    return found


def _test(
    model: nn.Module, data: DatasetConfig, split: str | None, device: torch.device
) -> tuple[float, str, dict[str, Any]]:
    images = open_test(like=model, split=split, **data.arguments)
    for note in images.notes:
        warn(note)
    metrics = evaluate_model(model, images.images.batches(num_workers=data.num_workers, device=device))
    where = {"dataset": images.name, "split": images.split, "images": metrics.num_images}
    return metrics.top1, f"{metrics.num_images:,} images of {images.name}, split {images.split}", where
