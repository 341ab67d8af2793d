"""`eagleeye finetune`."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn

from eagleeye_hf.arguments import flag
from eagleeye_hf.channels.graph import ChannelGraph
from eagleeye_hf.channels.trace import trace_model
from eagleeye_hf.commands.inspect import open_model
from eagleeye_hf.data.splits import open_splits
from eagleeye_hf.evaluation.metrics import Metrics, evaluate_model
from eagleeye_hf.publishing.card import CardFacts, write_card
from eagleeye_hf.publishing.checkpoint import save_pretrained
from eagleeye_hf.publishing.config import read_config
from eagleeye_hf.training.config import FinetuneConfig
from eagleeye_hf.training.finetune import EpochRecord, finetune_model
from eagleeye_hf.workflow.config import TrainingDataConfig
from eagleeye_hf.workflow.load import load_model
from eagleeye_hf.workflow.recipe import prepare_output


@dataclass(frozen=True, kw_only=True)
class Config(TrainingDataConfig, FinetuneConfig):
    model: str = field(metadata={"help": "checkpoint folder, hf-hub:USER/REPO or timm name"})
    weights: str | None = flag(None, "safetensors file with the model's weights, instead of its own")
    teacher: str | None = flag(None, "trained network to learn from beside the labels, as the unpruned one")
    teacher_weights: str | None = flag(None, "safetensors file with its weights, instead of those of the Hub")
    num_workers: int = flag(4, "processes that decode images, per training process")
    output: str = flag("outputs/finetuned", "folder for the new checkpoint and its card")
    json: bool = flag(False, "print JSON")


def run(config: Config) -> None:
    """Train a pruned network further; start the same command again after a kill, and it goes on where it was."""
    folder = prepare_output(config.output)
    set_seed(config.seed)
    accelerator = Accelerator()
    model = load_model(config.model, config.weights)
    teacher = load_model(config.teacher, config.teacher_weights) if config.teacher else None
    data = open_splits(config.dataset, like=model, **config.splits)
    part = accelerator.process_index, accelerator.num_processes
    metrics, curve = {}, list[EpochRecord]()

    def test(stage: str, network: nn.Module) -> None:
        batches = data.test.batches(part=part, num_workers=config.num_workers)
        metrics[stage] = evaluate_model(network.to(accelerator.device), batches, accelerator)

    test("before", model)
    trained = finetune_model(
        model,
        data.train,
        FinetuneConfig(**{f.name: getattr(config, f.name) for f in fields(FinetuneConfig)}),
        teacher=teacher,
        holdout=data.holdout,
        calibration=data.calibration,
        accelerator=accelerator,
        checkpoint=folder / "training",
        on_epoch=curve.append,
    )
    test("fine-tuned", trained)
    if accelerator.is_main_process:
        history = _history(config.model)
        facts = _facts(config, history, data.name, metrics["fine-tuned"], curve)
        history["metrics"] = {stage: m.to_dict() for stage, m in facts.metrics.items()}
        save_pretrained(
            trained.cpu(),
            folder,
            label_names=data.label_names,
            provenance=history | {"finetune": asdict(config), "training": [asdict(record) for record in curve]},
            card=write_card(facts, config.output),
        )
        shutil.rmtree(folder / "training", ignore_errors=True)
        _report(config, metrics)


def _history(model: str) -> dict[str, Any]:
    """What a checkpoint tells about how it was made."""
    return dict(read_config(Path(model)).get("eagleeye", {})) if Path(model).is_dir() else {}


def _facts(
    config: Config, history: dict[str, Any], dataset: str, metrics: Metrics, curve: list[EpochRecord]
) -> CardFacts:
    base, kept = open_model(config.model)
    graph: ChannelGraph = trace_model(base)
    earlier = {stage: Metrics(**values) for stage, values in history.get("metrics", {}).items()}
    return CardFacts(
        base=history.get("base_model", config.model),
        graph=graph,
        widths=[kept.get(group.name, group.channels) for group in graph.groups],
        dataset=dataset,
        metrics=earlier | {"fine-tuned": metrics},
        holdout_images=config.holdout_images,
        training_curve=[asdict(record) for record in curve],
        settings={"epochs": config.epochs, "learning rate": config.lr, "batch size": config.batch_size}
        | {"teacher": config.teacher or "none", "seed": config.seed},
        command=shlex.join(["eagleeye", *sys.argv[1:]]),
        license=str((getattr(base, "pretrained_cfg", None) or {}).get("license") or ""),
    )


def _report(config: Config, metrics: dict[str, Metrics]) -> None:
    if config.json:
        print(json.dumps({"output": config.output} | {stage: m.to_dict() for stage, m in metrics.items()}))
        return
    for stage, found in metrics.items():
        print(f"{stage:12} top-1 {found.top1:.2%}, cross-entropy {found.loss:.4f}")
    print(f"saved in {config.output}")
