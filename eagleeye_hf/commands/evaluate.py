"""`eagleeye evaluate`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated

from eagleeye_hf.commands.printing import PrintConfig
from eagleeye_hf.configs import Within, check_fields
from eagleeye_hf.data.config import DatasetConfig
from eagleeye_hf.runs.config import NetworkConfig, TeacherConfig
from eagleeye_hf.telling import progress_bar, warn


@dataclass(frozen=True, kw_only=True)
class Config(TeacherConfig):
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
    """Measure top-1, top-5 and cross-entropy of a network on one split of a dataset, or how often it decides as
    another network does, on images that need no labels."""
    from accelerate import Accelerator

    from eagleeye_hf.data.measured import open_test
    from eagleeye_hf.evaluation.metrics import evaluate_model
    from eagleeye_hf.runs.models import load_model
    from eagleeye_hf.training.checks import check_teacher

    accelerator = Accelerator()
    name = config.network.model
    model = load_model(name, config.network.weights, config.network.inputs).to(accelerator.device)
    teacher = None
    if config.teacher is not None:
        teacher = load_model(config.teacher, config.teacher_weights).to(accelerator.device)
        check_teacher(teacher, model)
    data = open_test(like=model, split=config.split, teacher=teacher, **config.data.arguments)
    for note in data.notes if accelerator.is_main_process else ():
        warn(note)
    part = accelerator.process_index, accelerator.num_processes
    batches = data.images.batches(config.batch_size, part, config.data.num_workers, accelerator.device)
    shown = progress_bar(
        batches, "evaluating", unit=" batches", delay=2, leave=False, disable=not accelerator.is_main_process
    )
    metrics = evaluate_model(model, shown, accelerator)
    if not accelerator.is_main_process:
        return
    found: dict[str, object] = {**metrics.to_dict()}
    if teacher is not None:
        found = {"teacher": config.teacher, "agreement": metrics.top1, "num_images": metrics.num_images}
    if config.printing.json:
        print(json.dumps({"model": name, "dataset": data.name, "split": data.split, **found}))
        return
    print(f"{name} on {metrics.num_images} images of {data.name}, split {data.split}")
    if teacher is not None:
        print(f"it decides as {config.teacher} on {metrics.top1:.2%} of them")
        return
    top5 = f"top-5 {metrics.top5:.2%}, " if len(data.label_names) > 5 else ""
    print(f"top-1 {metrics.top1:.2%}, {top5}cross-entropy {metrics.loss:.4f}")
