"""What `eagleeye compress` does around `compress_model`: everything that is left open is settled, and said."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

from accelerate import Accelerator
from torch import nn

from eagleeye_hf.data.columns import find_classes
from eagleeye_hf.data.source import open_together
from eagleeye_hf.data.splits import Splits, open_splits
from eagleeye_hf.data.unlabelled import has_labels
from eagleeye_hf.networks.description import describe_model
from eagleeye_hf.processes import is_main, main_process_works
from eagleeye_hf.publishing.checkpoint import save_pretrained
from eagleeye_hf.publishing.config import CONFIG
from eagleeye_hf.runs.adapt import KEPT, NEW, adapt_head, adapt_model, settle_adaptation
from eagleeye_hf.runs.compress import RunResult, check_license, check_settings, check_strategy, compress_model
from eagleeye_hf.runs.config import JobConfig, RunConfig, split_arguments
from eagleeye_hf.runs.folder import open_run
from eagleeye_hf.runs.models import load_model
from eagleeye_hf.runs.plan import ADAPTATION

FULL = "full"
"""The adapted full network, in the run's folder."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A network and images, ready for `compress_model`."""

    model: nn.Module
    data: Splits
    config: RunConfig
    """Nothing in it is left open."""
    head: str
    """What became of the network's head; empty where it is as it was."""
    notes: tuple[str, ...]
    """What a user should know of how these were made ready."""


def open_job(config: JobConfig, accelerator: Accelerator | None = None, download: bool = True) -> Job:
    """Load the network, open the dataset, and make each fit for the other; nothing is trained yet.

    Args:
        accelerator: its processes do this together.
        download: what is on the Hub, where training reads it more than once.
    Raises:
        EagleEyeError: something is missing or does not fit.
    """
    check_settings(config)
    if download:
        config = replace(config, data=config.data.settle(config.epochs))
    network, told = config.network, config.data
    model = load_model(network.model, network.weights, network.inputs)
    source = open_together(accelerator, told.dataset, told.dataset_config, told.dataset_revision, told.streaming, None)
    columns = {"image_column": told.image_column, "label_column": told.label_column}
    needs_labels = config.finetune.epochs != 0 or bool(config.adapt.adapt_epochs)
    labelled = needs_labels or has_labels(source, told.label_column)
    before = describe_model(model).num_classes
    head = ""
    if config.adapt.adapt_epochs != 0:
        names = find_classes(source, **columns, label_names=told.label_names) if labelled else None
        model, head = adapt_head(model, names)
    check_strategy(model, config)
    arguments = split_arguments(told, config.held_out, config.augmentation, config.seed)
    data = open_splits(
        like=model, **arguments | {"dataset": source}, needs_labels=needs_labels, accelerator=accelerator
    )
    settled = settle_job(config, head, data.train.count(accelerator))
    check_license(model, settled)
    now = len(data.label_names)
    told_head = {KEPT: f"{now} of its {before:,} outputs kept", NEW: f"a new head for {now} classes"}.get(head, "")
    notes = list(data.notes)
    if not data.labelled:
        notes.append(
            "the images have no labels: candidates are ranked by how far their outputs are from the full network's, "
            "and agreement with its decisions is measured instead of accuracy; if a column holds labels, name it with "
            "`--label-column`"
        )
    if head == KEPT:
        notes.append(f"{now} of the network's {before:,} outputs stand for the dataset's classes, and are kept")
    if head == NEW:
        notes.append(f"the network's head of {before:,} outputs gives way to a new one for {now} classes")
    if not head and network.weights and not network.inputs.image_size:
        size = describe_model(model).image_size[0]
        notes.append(
            f"images are seen at {size} px, as timm says of {network.model}; if these weights were trained at another "
            "size, give `--image-size`"
        )
    return Job(model=model, data=data, config=settled, head=told_head, notes=tuple(notes))


def do_job(job: Job, on_phase: Callable[[str], None] | None = None) -> RunResult:
    """Adapt, where that is to be done; search, prune, fine-tune, save and publish. The full network, where it was
    adapted, is kept in the run's folder, too.

    Args:
        on_phase: told the name of each phase as it begins, as in the job's plan.
    """
    model, config, epochs = job.model, job.config, job.config.adapt.adapt_epochs
    adapted = [job.head] if job.head else []
    if epochs:
        if not open_run(config.output, "compress", finished=True).has_result:  # else it is only to be published
            if on_phase:
                on_phase(ADAPTATION)
            model = adapt_model(model, job.data, config)
        adapted.append(
            f"trained for {epochs} epochs on {job.data.name} (the best on the holdout images stays, the start too)"
        )
    if adapted:
        with main_process_works():
            if is_main():
                _keep_full(model, job)
    return compress_model(model, job.data, config, adapted=", then ".join(adapted), on_phase=on_phase)


def _keep_full(model: nn.Module, job: Job) -> None:
    run = open_run(job.config.output, "compress", finished=True)
    run.claim(FULL)
    if not (run.path / FULL / CONFIG).exists():
        run.remove(FULL)  # a kill left half of it
        save_pretrained(model, run.path / FULL, label_names=job.data.label_names)


def settle_job(config: JobConfig, head: str, num_images: int) -> RunConfig:
    """The same with nothing left open."""
    settings: dict[str, Any] = {field.name: getattr(config, field.name) for field in fields(RunConfig)}
    settled = RunConfig(**settings | {"finetune": config.finetune.settle(num_images)})
    return settle_adaptation(settled, head, num_images)
