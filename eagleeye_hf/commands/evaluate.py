"""`eagleeye evaluate`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated

from eagleeye_hf.commands.printing import PrintConfig
from eagleeye_hf.configs import Within, check_fields
from eagleeye_hf.data.config import DatasetConfig
from eagleeye_hf.runs.config import NetworkConfig
from eagleeye_hf.telling import progress_bar, warn


@dataclass(frozen=True, kw_only=True)
class Config:
    network: NetworkConfig
    data: DatasetConfig = DatasetConfig()
    split: str | None = None
    """Split to measure on; by default validation, test, val, valid, dev or eval, or the only one."""
    batch_size: Annotated[int, Within("[1, inf)")] = 128
    """Images per step."""
    printing: PrintConfig = PrintConfig()

    def __post_init__(self) -> None:
        check_fields(self)


def run(config: Config) -> None:
    """Measure top-1, top-5 and cross-entropy of a network on one split of a dataset."""
    from accelerate import Accelerator

    from eagleeye_hf.data.measured import open_test
    from eagleeye_hf.evaluation.metrics import evaluate_model
    from eagleeye_hf.runs.models import load_model

    accelerator = Accelerator()
    name = config.network.model
    model = load_model(name, config.network.weights, config.network.inputs).to(accelerator.device)
    data = open_test(like=model, split=config.split, **config.data.arguments)
    for note in data.notes if accelerator.is_main_process else ():
        warn(note)
    part = accelerator.process_index, accelerator.num_processes
    batches = data.images.batches(config.batch_size, part, config.data.num_workers, accelerator.device)
    shown = progress_bar(
        batches, "evaluating", unit=" batches", delay=2, leave=False, disable=not accelerator.is_main_process
    )
    metrics = evaluate_model(model, shown, accelerator)
    if accelerator.is_main_process:
        if config.printing.json:
            print(json.dumps({"model": name, "dataset": data.name, "split": data.split, **metrics.to_dict()}))
        else:
            print(f"{name} on {metrics.num_images} images of {data.name}, split {data.split}")
            top5 = f"top-5 {metrics.top5:.2%}, " if len(data.label_names) > 5 else ""
            print(f"top-1 {metrics.top1:.2%}, {top5}cross-entropy {metrics.loss:.4f}")
