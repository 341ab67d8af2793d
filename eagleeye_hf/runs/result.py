"""The result of a run: measured, saved with its card, and summed up for the terminal."""

from __future__ import annotations

import importlib.util
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn

from eagleeye_hf.channels.cost import count_cost
from eagleeye_hf.channels.graph import ChannelGraph
from eagleeye_hf.configs import flat_dict, flat_items
from eagleeye_hf.data.splits import Splits
from eagleeye_hf.evaluation.metrics import Metrics
from eagleeye_hf.publishing.card import CardFacts, cost_table, write_card
from eagleeye_hf.publishing.card_checks import find_license
from eagleeye_hf.publishing.checkpoint import save_pretrained, state_bytes
from eagleeye_hf.publishing.own import Build
from eagleeye_hf.publishing.paths import hide_paths
from eagleeye_hf.runs.config import RunConfig
from eagleeye_hf.runs.folder import SAVED, RunFolder
from eagleeye_hf.runs.int8 import test_int8
from eagleeye_hf.runs.measuring import judge_latency, measure_result
from eagleeye_hf.runtimes.runtime import find_runtime
from eagleeye_hf.strategies.strategy import Strategy, input_size_of, named_widths
from eagleeye_hf.telling import warn
from eagleeye_hf.training.config import FinetuneConfig
from eagleeye_hf.training.finetune import EpochRecord

PICTURE = "result.png"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a run chose, and what came of it."""

    strategy: Strategy
    origin: str
    metrics: Mapping[str, Metrics]
    """On the test images: of the full network and of the result, by the name of its last step."""
    steps: Mapping[str, Metrics]
    """On the holdout images, between the two."""
    curve: Sequence[EpochRecord]
    adapted: str = ""
    """What was done to a trained network, so that it fits the dataset."""


def save_result(
    model: nn.Module,
    pruned: nn.Module,
    graph: ChannelGraph,
    images: tuple[Splits, Splits],
    measured: Measured,
    config: RunConfig,
    run: RunFolder,
    accelerator: Accelerator,
    builder: Build | None = None,
) -> None:
    """Measure milliseconds, and save the checkpoint with its card; `config.json` comes last.

    Args:
        images: as the full network sees them, and as the result does.
    """
    data, thin_size = images[0], input_size_of(graph, measured.strategy)
    pruned = pruned.to(accelerator.device).eval()
    latency = measure_result(model, pruned, graph.input_size, config.measuring, thin_size=thin_size)
    int8 = {}
    if config.measuring.int8:
        pairs = zip(("full", "pruned"), (model, pruned), images, strict=True)
        int8 = {name: test_int8(one, seen, config.data.num_workers) for name, one, seen in pairs}
    pruned = pruned.cpu().eval()
    facts = CardFacts(
        base=config.network.model,
        graph=graph,
        strategy=measured.strategy,
        dataset=data.name,
        dataset_revision=data.revision,
        metrics=measured.metrics,
        steps=measured.steps,
        split=data.test.split,
        parted=data.parted,
        local_weights=config.network.weights is not None if measured.adapted else config.local_weights,
        holdout_images=data.holdout.count(),
        training_curve=curve_points(measured.curve),
        latency=latency,
        int8={name: found for name, (found, _) in int8.items()},
        int8_bytes=tuple(size for _, size in int8.values()) or None,
        settings=_settings(config, measured, data.calibration.count()),
        command=_command(accelerator),
        license=license_of(model, config),
        num_classes=len(data.label_names),
        labelled=data.labelled,
        own=builder is not None,
        picture=PICTURE if importlib.util.find_spec("matplotlib") else "",
        file_bytes=(state_bytes(model), state_bytes(pruned)),
    )
    provenance = {
        "base_model": hide_paths(facts.base),
        "widths": named_widths(graph, measured.strategy),
        "removed_blocks": list(measured.strategy.removed_blocks),
        "image_size": measured.strategy.image_size,
        "full_input_size": list(graph.input_size),
        "metrics": {step: found.to_dict() for step, found in measured.metrics.items()},
        "holdout_metrics": {step: found.to_dict() for step, found in measured.steps.items()},
        "labelled": data.labelled,
        "tested_on": tested_on(data),
        "local_weights": facts.local_weights,
        "config": hide_paths(flat_dict(config)),
        "training": [asdict(record) for record in measured.curve],
    }
    limit = None if config.strategy else config.search.budgets[0].limits.get("latency")
    asked = find_runtime(config.measuring, accelerator.device).place
    notes = [note for found in latency if found.place == asked for note in judge_latency(found, limit)]
    for note in notes:
        warn(note)
    run.claim(PICTURE, *SAVED)
    run.note(summary=summarise(facts, run), settings=told_settings(config))
    if facts.picture:
        from eagleeye_hf.reports.result import draw_result  # needs the extra `plots`

        picture = run.path / PICTURE
        draw_result(graph, measured.strategy, facts.metrics, picture, facts.training_curve, facts.steps, facts.reports)
    push_to = config.publishing.push_to
    save_pretrained(
        pruned,
        run.path,
        label_names=data.label_names,
        provenance=provenance,
        card=write_card(facts, push_to or str(run.path), on_hub=bool(push_to)),
        builder=builder,
        input_size=thin_size,
    )


def told_settings(config: RunConfig) -> dict[str, Any]:
    """Those that a result depends on, as JSON has them."""
    others = {*flat_dict(config.publishing), *flat_dict(config.hub), "num_workers", "output"}
    settings = {key: value for key, value in flat_dict(config).items() if key not in others}
    return dict(json.loads(json.dumps(settings, default=str)))


def tested_on(data: Splits) -> dict[str, Any]:
    """What test metrics are of; those of other images, or of agreement, are not to stand beside them."""
    told = {"dataset": data.name, "revision": data.revision, "split": data.test.split, "labelled": data.labelled}
    return hide_paths(told | {"images": data.test.count()})


def curve_points(curve: Sequence[EpochRecord]) -> list[dict[str, float]]:
    """The training curve as cards and pictures want it."""
    keys = ("epoch", "loss", "top1")
    return [{key: value for key in keys if (value := getattr(record, key)) is not None} for record in curve]


def _settings(config: RunConfig, measured: Measured, calibration_images: int) -> dict[str, object]:
    settings: dict[str, object] = {"full network": measured.adapted} if measured.adapted else {}
    settings |= {"strategy": measured.origin, "criterion": config.importance.criterion}
    settings["compensation"] = "least squares" if config.repair.compensate else "none"
    if not config.strategy:
        settings["candidates"] = config.search.candidates
        settings["budget"] = str(config.search.budgets[0])
    settings["calibration images"] = calibration_images
    if config.finetune.epochs:
        default = FinetuneConfig()
        always = ("epochs", "batch_size", "optimizer", "lr", "schedule", "weight_decay", "distillation")
        settings["fine-tuning"] = ", ".join(
            f"{key} {value}"
            for key, value in flat_items(config.finetune)
            if key in always or value != getattr(default, key)
        )
    return settings | {"seed": config.seed}


def _command(accelerator: Accelerator) -> str:
    """What starts this run again, as far as the script can tell."""
    started = Path(sys.argv[0])
    ours = started.name in ("eagleeye", "__main__.py")
    if ours and accelerator.num_processes == 1:
        return shlex.join(["eagleeye", *sys.argv[1:]])
    command = "accelerate launch"
    if accelerator.num_processes > 1:
        command += f" --multi_gpu --num_processes {accelerator.num_processes}"
    if accelerator.mixed_precision != "no":
        command += f" --mixed_precision {accelerator.mixed_precision}"
    return f"{command} {shlex.join(['-m', 'eagleeye_hf', *sys.argv[1:]] if ours else sys.argv)}"


def license_of(model: nn.Module, config: RunConfig) -> str:
    """The licence given or, for weights that came with it, the network's own."""
    told = find_license(getattr(model, "pretrained_cfg", None), config.local_weights)
    return config.publishing.license or told


def summarise(facts: CardFacts, run: RunFolder) -> str:
    """The closing table."""
    full, pruned = count_cost(facts.graph, facts.graph.widths), count_cost(facts.graph, facts.strategy)
    left = f"{pruned.macs / full.macs:.1%} of the MACs, {pruned.params / full.params:.1%} of the parameters"
    rows = cost_table(facts)
    wide = max(len(row["name"]) for row in rows) + 4
    lines = [f"\n{facts.base}: {left}\n"]
    for title, found in (("test", facts.metrics), ("holdout", facts.steps)):
        lines += [
            f"{facts.reports} on the {title} images",
            *(f"  {k:{wide}}{m.top1:>12.2%}" for k, m in found.items()),
            "",
        ]
    lines.append(f"  {'':{wide}}{'full':>12}{'pruned':>12}")
    lines += [f"  {row['name']:{wide}}{row['full']:>12}{row['pruned']:>12}" for row in rows]
    return "\n".join([*lines, f"\nsaved in {run.path}"])
