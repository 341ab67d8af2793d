"""Training a pruned network further, from a checkpoint to a new one."""

from __future__ import annotations

import shlex
import sys
from dataclasses import asdict
from typing import Any

from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn

from eagleeye_hf.configs import flat_dict
from eagleeye_hf.data.splits import Splits, open_splits
from eagleeye_hf.errors import EagleEyeError
from eagleeye_hf.evaluation.metrics import Metrics
from eagleeye_hf.networks.description import describe_model
from eagleeye_hf.processes import main_process_works
from eagleeye_hf.publishing.card import CardFacts, write_card
from eagleeye_hf.publishing.card_checks import find_license
from eagleeye_hf.publishing.checkpoint import save_pretrained, state_bytes
from eagleeye_hf.publishing.config import read_config
from eagleeye_hf.publishing.paths import hide_paths
from eagleeye_hf.runs.arguments import RUN_FILE, settings_text
from eagleeye_hf.runs.compress import TRAINING, publish_run, test_model
from eagleeye_hf.runs.config import FinetuneRunConfig, image_identity, split_arguments
from eagleeye_hf.runs.folder import check_output, open_run
from eagleeye_hf.runs.measuring import measure_result
from eagleeye_hf.runs.models import find_checkpoint, load_model, open_model, trace_kept
from eagleeye_hf.runs.result import curve_points, tested_on
from eagleeye_hf.strategies.strategy import input_size_of
from eagleeye_hf.training.finetune import EpochRecord, finetune_model
from eagleeye_hf.training.state import check_shared


def finetune_checkpoint(config: FinetuneRunConfig) -> dict[str, Metrics] | None:
    """Train further, save the result with its card, and publish it where that is wanted.

    Returns:
        Test metrics before and after, in the main process; None in others.
    """
    check_output(config.output, "finetune")
    set_seed(config.seed)
    accelerator = Accelerator()
    name = config.network.model
    model = load_model(name, config.network.weights, config.network.inputs)
    teacher = load_model(config.teacher, config.teacher_weights) if config.teacher else None
    images = config.data.settle(config.finetune.epochs), config.held_out, config.augmentation, config.seed
    data = open_splits(like=model, **split_arguments(*images), accelerator=accelerator)
    run, curve = open_run(config.output, "finetune"), list[EpochRecord]()
    check_shared(run.path, "output", accelerator)
    if accelerator.is_main_process:
        run.write(RUN_FILE, settings_text(config))
        run.claim(TRAINING, "logs")

    size, taught = describe_model(model).input_size[1], data
    if teacher is not None and describe_model(teacher).input_size[1] > size:
        taught = data.seen_by(teacher)  # which sees larger images of the same

    def test(network: nn.Module, images: Splits = data) -> Metrics:
        return test_model(network, images, accelerator, config.data.num_workers)

    history = _history(name)
    if history.get("tested_on") != tested_on(data):  # measurements of other images, or of agreement
        history |= {"metrics": {}, "holdout_metrics": {}}
    metrics = _metrics_of(history, "metrics")
    before = test(model)
    if "full" not in metrics and teacher is not None:
        metrics = {"full": test(teacher, taught)} | metrics
    networks = {"model": name, "weights": config.network.weights}
    networks |= {"teacher": config.teacher, "teacher_weights": config.teacher_weights}
    trained = finetune_model(
        model,
        taught.train,
        config.finetune,
        teacher=teacher,
        image_size=size if taught is not data else None,
        holdout=data.holdout,
        calibration=taught.calibration,
        accelerator=accelerator,
        checkpoint=run.path / TRAINING,
        identity=image_identity(*images) | networks,
        num_workers=config.data.num_workers,
        on_epoch=curve.append,
    )
    metrics["fine-tuned"] = test(trained)
    with main_process_works():
        if not accelerator.is_main_process:
            return None
        facts = _facts(config, history, data, (model, trained), metrics, curve)
        history["metrics"] = {step: found.to_dict() for step, found in metrics.items()}
        history |= {"tested_on": tested_on(data), "labelled": data.labelled, "local_weights": facts.local_weights}
        push_to = config.publishing.push_to
        run.claim_checkpoint()
        save_pretrained(
            trained.cpu(),
            run.path,
            label_names=data.label_names,
            provenance=history
            | {"finetune": hide_paths(flat_dict(config)), "training": [asdict(record) for record in curve]},
            card=write_card(facts, push_to or config.output, on_hub=bool(push_to)),
        )
        run.remove(TRAINING)
        if push_to:
            publish_run(run.path, push_to, config.hub)
        run.note(finished=True)
    return {"before": before, "fine-tuned": metrics["fine-tuned"]}


def _history(model: str) -> dict[str, Any]:
    """What a checkpoint tells about how it was made."""
    folder = find_checkpoint(model)
    return dict(read_config(folder)["eagleeye"]) if folder else {}


def _facts(
    config: FinetuneRunConfig,
    history: dict[str, Any],
    data: Splits,
    networks: tuple[nn.Module, nn.Module],
    metrics: dict[str, Metrics],
    curve: list[EpochRecord],
) -> CardFacts:
    """The card's.

    Args:
        networks: before and after training.
    """
    model, trained = (network.cpu() for network in networks)
    ours = find_checkpoint(config.network.model) is not None
    base, kept = open_model(config.network.model) if ours else (model, {})
    base = base.eval()
    graph, strategy = trace_kept(base, kept, f"`model={config.network.model}`")
    told_before = (history.get("config") or {}).get("weights") is not None
    local = config.network.weights is not None or history.get("local_weights", told_before)
    told = (history.get("config") or {}).get("license") or find_license(getattr(base, "pretrained_cfg", None), local)
    training = config.finetune
    return CardFacts(
        base=history.get("base_model", config.network.model),
        graph=graph,
        strategy=strategy,
        dataset=data.name,
        dataset_revision=data.revision,
        metrics=metrics,
        steps=_metrics_of(history, "holdout_metrics"),
        split=data.test.split,
        parted=data.parted,
        local_weights=local,
        holdout_images=data.holdout.count(),
        training_curve=curve_points(curve),
        file_bytes=(state_bytes(base), state_bytes(trained)),
        latency=measure_result(
            base, trained, graph.input_size, config.measuring, thin_size=input_size_of(graph, strategy)
        ),
        settings={
            **_made(history),
            "epochs": training.epochs,
            "learning rate": training.lr,
            "batch size": training.batch_size,
            "teacher": config.teacher or "none",
            "calibration images": data.calibration.count(),
            "seed": config.seed,
        },
        command=shlex.join(["eagleeye", *sys.argv[1:]]),
        license=str(config.publishing.license or told or ""),
        num_classes=len(data.label_names),
    )


def _metrics_of(history: dict[str, Any], key: str) -> dict[str, Metrics]:
    """Measurements that a checkpoint brings with it; it may come from strangers."""
    try:
        return {step: Metrics(**values) for step, values in history.get(key, {}).items()}
    except (TypeError, AttributeError) as error:
        raise EagleEyeError(f"`{key}` in the checkpoint's config.json are none ({error}); get the file anew") from error


def _made(history: dict[str, Any]) -> dict[str, object]:
    """How the checkpoint came to be, as its card told it or would have."""
    pruned, found = history.get("config") or {}, history.get("strategy") or {}
    settings = {"strategy": found.get("origin"), "budget": found.get("budget") or pruned.get("macs")}
    settings |= {"criterion": pruned.get("criterion")}
    if "compensate" in pruned:
        settings["compensation"] = "least squares" if pruned["compensate"] else "none"
    return {name: value for name, value in settings.items() if value is not None}
