"""`eagleeye prune`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator

from eagleeye_hf.channels.cost import count_cost
from eagleeye_hf.data.splits import open_splits
from eagleeye_hf.errors import EagleEyeError
from eagleeye_hf.evaluation.metrics import evaluate_model
from eagleeye_hf.evaluation.score import AdaptiveBNScore, measure_stages
from eagleeye_hf.publishing.checkpoint import check_free, save_pretrained
from eagleeye_hf.runs.arguments import flag
from eagleeye_hf.runs.config import DataConfig
from eagleeye_hf.runs.models import load_model
from eagleeye_hf.strategies.files import read_strategy
from eagleeye_hf.tracing.trace import trace_model


@dataclass(frozen=True, kw_only=True)
class Config(DataConfig):
    model: str = field(metadata={"help": "timm name of the trained network"})
    strategy: str = field(
        metadata={"help": "JSON file (or FILE#NAME) with widths or ratios, as eagleeye search writes"}
    )
    weights: str | None = flag(None, "safetensors file with its weights, instead of those of the Hub")
    dataset: str = flag("ILSVRC/imagenet-1k", "Hub name or local folder of an image classification dataset")
    divisor: int = flag(1, "widths are multiples of this many channels, where the file holds ratios")
    criterion: str = flag("l1", "which channels stay: l1, l2, bn_scale, geometric_median, taylor or random")
    compensate: bool = flag(False, "repair the readers of removed channels by least squares")
    output: str = flag("outputs/pruned", "folder for the checkpoint")
    json: bool = flag(False, "print JSON")


def run(config: Config) -> None:
    """Apply a strategy: slice, optionally compensate, recompute BatchNorm statistics, save. Nothing is trained."""
    folder = Path(config.output)
    check_free(folder)
    device = Accelerator().device
    model = load_model(config.model, config.weights).to(device).eval()
    graph = trace_model(model)
    strategy = read_strategy(graph, config.strategy, config.divisor)
    data = open_splits(config.dataset, like=model, **config.splits)
    calibration, holdout = data.calibration.cached_batches(), data.holdout.cached_batches()
    score = AdaptiveBNScore(model, graph, calibration, holdout, criterion=config.criterion, seed=config.seed)
    pruned, stages = measure_stages(score, strategy.widths, lambda m: evaluate_model(m, holdout), config.compensate)
    metrics = {"full": evaluate_model(model, holdout)} | stages
    if not all(torch.isfinite(tensor).all() for tensor in pruned.state_dict().values()):
        raise EagleEyeError("the pruned network has weights or statistics that are not finite numbers; check `weights`")
    full, kept = count_cost(graph, graph.widths)._asdict(), count_cost(graph, strategy.widths)._asdict()
    scores = {stage: own.to_dict() for stage, own in metrics.items()}
    provenance = {
        "base_model": config.model,
        "widths": {g.name: w for g, w in zip(graph.groups, strategy.widths, strict=True) if g.prunable},
        "holdout_metrics": scores,
        "config": asdict(config),
    }
    save_pretrained(pruned.cpu().eval(), folder, label_names=data.label_names, provenance=provenance)
    if config.json:
        print(json.dumps({"folder": str(folder), "full": full, "kept": kept, "holdout": scores}))
        return
    shares = f"{kept['macs'] / full['macs']:.1%} of the MACs, {kept['params'] / full['params']:.1%} of the parameters"
    print(f"{config.model}: {shares}\n\ntop-1 on {len(holdout) and metrics['full'].num_images} holdout images")
    for stage, own in metrics.items():
        print(f"  {stage:<12}{own.top1:>8.2%}")
    print(f"\nsaved in {folder}; fine-tune it next")
