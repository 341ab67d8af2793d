"""`eagleeye finetune`."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn

from eagleeye_hf.channels.graph import ChannelGraph
from eagleeye_hf.commands.inspect import find_checkpoint, open_model
from eagleeye_hf.data.splits import Splits, open_splits
from eagleeye_hf.evaluation.metrics import Metrics
from eagleeye_hf.publishing.card import CardFacts, write_card
from eagleeye_hf.publishing.checkpoint import save_pretrained, state_bytes
from eagleeye_hf.publishing.config import read_config
from eagleeye_hf.runs.arguments import flag
from eagleeye_hf.runs.compress import test_model
from eagleeye_hf.runs.config import WORKERS, TrainingDataConfig
from eagleeye_hf.runs.models import load_model
from eagleeye_hf.runs.recipe import prepare_output
from eagleeye_hf.runtimes.latency import describe_device, measure_latency
from eagleeye_hf.tracing.trace import trace_model
from eagleeye_hf.training.config import FinetuneConfig
from eagleeye_hf.training.finetune import EpochRecord, finetune_model

NETWORKS = ("model", "weights", "teacher", "teacher_weights")


@dataclass(frozen=True, kw_only=True)
class Config(TrainingDataConfig, FinetuneConfig):
    model: str = field(metadata={"help": "checkpoint folder, hf-hub:USER/REPO or timm name"})
    weights: str | None = flag(None, "safetensors file with the model's weights, instead of its own")
    teacher: str | None = flag(None, "trained network to learn from beside the labels, as the unpruned one")
    teacher_weights: str | None = flag(None, "safetensors file with its weights, instead of those of the Hub")
    num_workers: int = flag(WORKERS, "processes that decode images, per training process")
    output: str = flag("outputs/finetuned", "folder for the new checkpoint and its card")
    license: str | None = flag(None, "licence of the result, as the Hub abbreviates it; by default the network's own")
    json: bool = flag(False, "print JSON")


def run(config: Config) -> None:
    """Train a pruned network further; start the same command again after a kill, and it goes on where it was."""
    folder = prepare_output(config.output)
    set_seed(config.seed)
    accelerator = Accelerator()
    model = load_model(config.model, config.weights)
    teacher = load_model(config.teacher, config.teacher_weights) if config.teacher else None
    data = open_splits(config.dataset, like=model, **config.splits)
    curve = list[EpochRecord]()

    def test(network: nn.Module) -> Metrics:
        return test_model(network, data, accelerator, config.num_workers)

    history = _history(config.model)
    metrics = {stage: Metrics(**values) for stage, values in history.get("metrics", {}).items()}
    before = test(model)
    if "full" not in metrics and teacher is not None:
        metrics = {"full": test(teacher)} | metrics
    trained = finetune_model(
        model,
        data.train,
        FinetuneConfig(**{f.name: getattr(config, f.name) for f in fields(FinetuneConfig)}),
        teacher=teacher,
        holdout=data.holdout,
        calibration=data.calibration,
        accelerator=accelerator,
        checkpoint=folder / "training",
        identity=config.images | {key: getattr(config, key) for key in NETWORKS},
        on_epoch=curve.append,
    )
    metrics["fine-tuned"] = test(trained)
    if accelerator.is_main_process:
        facts = _facts(config, history, data, trained, metrics, curve)
        history["metrics"] = {stage: m.to_dict() for stage, m in metrics.items()}
        save_pretrained(
            trained.cpu(),
            folder,
            label_names=data.label_names,
            provenance=history | {"finetune": asdict(config), "training": [asdict(record) for record in curve]},
            card=write_card(facts, config.output),
        )
        shutil.rmtree(folder / "training", ignore_errors=True)
        _report(config, {"before": before, "fine-tuned": metrics["fine-tuned"]})


def _history(model: str) -> dict[str, Any]:
    """What a checkpoint tells about how it was made."""
    folder = find_checkpoint(model)
    return dict(read_config(folder)["eagleeye"]) if folder else {}


def _facts(
    config: Config,
    history: dict[str, Any],
    data: Splits,
    trained: nn.Module,
    metrics: dict[str, Metrics],
    curve: list[EpochRecord],
) -> CardFacts:
    base, kept = open_model(config.model)
    base, trained = base.eval(), trained.cpu()
    graph: ChannelGraph = trace_model(base)
    full, thin = measure_latency([base, trained], graph.input_size)
    own = (history.get("config") or {}).get("license") or (getattr(base, "pretrained_cfg", None) or {}).get("license")
    return CardFacts(
        base=history.get("base_model", config.model),
        graph=graph,
        widths=[kept.get(group.name, group.channels) for group in graph.groups],
        dataset=data.name,
        dataset_revision=data.revision,
        metrics=metrics,
        holdout_images=config.holdout_images,
        training_curve=[asdict(record) for record in curve],
        file_bytes=(state_bytes(base), state_bytes(trained)),
        latency_ms=(full, thin),
        device=describe_device(torch.device("cpu")),
        settings={"epochs": config.epochs, "learning rate": config.lr, "batch size": config.batch_size}
        | {"teacher": config.teacher or "none", "calibration images": config.calibration_images, "seed": config.seed},
        command=shlex.join(["eagleeye", *sys.argv[1:]]),
        license=str(config.license or own or ""),
    )


def _report(config: Config, metrics: dict[str, Metrics]) -> None:
    if config.json:
        print(json.dumps({"output": config.output} | {stage: m.to_dict() for stage, m in metrics.items()}))
        return
    for stage, found in metrics.items():
        print(f"{stage:12} top-1 {found.top1:.2%}, cross-entropy {found.loss:.4f}")
    print(f"saved in {config.output}")
