"""`eagleeye evaluate`."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from accelerate import Accelerator
from tqdm.auto import tqdm

from eagleeye_hf.data.splits import open_splits
from eagleeye_hf.evaluation.metrics import evaluate_model
from eagleeye_hf.runs.arguments import flag
from eagleeye_hf.runs.config import WORKERS, ImagesConfig
from eagleeye_hf.runs.models import load_model


@dataclass(frozen=True, kw_only=True)
class Config(ImagesConfig):
    model: str = field(metadata={"help": "timm name, hf-hub:USER/REPO or checkpoint folder"})
    weights: str | None = flag(None, "safetensors file with its weights, instead of those of the Hub")
    batch_size: int = flag(128, "images per step")
    num_workers: int = flag(WORKERS, "processes that decode images, per process")
    json: bool = flag(False, "print JSON")


def run(config: Config) -> None:
    """Measure top-1, top-5 and cross-entropy of a network on the dataset's test images."""
    accelerator = Accelerator()
    model = load_model(config.model, config.weights).to(accelerator.device)
    data = open_splits(config.dataset, like=model, calibration_images=0, holdout_images=0, **config.splits)
    part = accelerator.process_index, accelerator.num_processes
    batches = data.test.batches(config.batch_size, part, config.num_workers, accelerator.device)
    shown = tqdm(batches, "evaluating", unit=" batches", delay=2, leave=False, disable=not accelerator.is_main_process)
    metrics = evaluate_model(model, shown, accelerator)
    if accelerator.is_main_process:
        if config.json:
            print(json.dumps({"model": config.model, "dataset": data.name, **metrics.to_dict()}))
        else:
            print(f"{config.model} on {metrics.num_images} test images of {data.name}")
            print(f"top-1 {metrics.top1:.2%}, top-5 {metrics.top5:.2%}, cross-entropy {metrics.loss:.4f}")
