"""One whole run on one model, dataset and budget."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor, nn

from eagleeye_hf.channels.graph import ChannelGraph
from eagleeye_hf.configs import flat_dict
from eagleeye_hf.data.image_set import ImageSet
from eagleeye_hf.data.splits import Splits
from eagleeye_hf.data.unlabelled import TaughtImages
from eagleeye_hf.errors import EagleEyeError
from eagleeye_hf.evaluation.metrics import Metrics, evaluate_model
from eagleeye_hf.evaluation.score import AdaptiveBNScore
from eagleeye_hf.evaluation.steps import measure_steps
from eagleeye_hf.processes import main_process_works
from eagleeye_hf.publishing.hub import check_repo, push_to_hub
from eagleeye_hf.publishing.own import Build
from eagleeye_hf.runs.adapt import BASE
from eagleeye_hf.runs.arguments import RUN_FILE, settings_text
from eagleeye_hf.runs.config import HubConfig, RunConfig, check_held_out
from eagleeye_hf.runs.dimensions import trace_network
from eagleeye_hf.runs.folder import RunFolder, open_run
from eagleeye_hf.runs.plan import FINETUNING, MATCHING, MEASURING, SEARCH
from eagleeye_hf.runs.result import Measured, license_of, save_result, told_settings
from eagleeye_hf.runs.scoring import make_score
from eagleeye_hf.runtimes.runtime import find_runtime
from eagleeye_hf.search.failures import free_memory
from eagleeye_hf.search.run import check_reach, run_search
from eagleeye_hf.strategies.files import describe_strategy, read_origin, read_strategy, warn_of_criterion
from eagleeye_hf.strategies.strategy import Strategy
from eagleeye_hf.telling import warn
from eagleeye_hf.training.finetune import EpochRecord, finetune_model
from eagleeye_hf.training.match import match_teacher
from eagleeye_hf.training.state import check_shared

TRAINING, MATCHED = "training", "training-matched"
"""Checkpoints of fine-tuning and of matching, in the run's folder until the result is saved."""


@dataclass(frozen=True, kw_only=True)
class RunResult:
    folder: Path
    strategy: Strategy


def compress_model(
    model: nn.Module,
    data: Splits,
    config: RunConfig,
    *,
    adapted: str = "",
    builder: Build | None = None,
    on_phase: Callable[[str], None] | None = None,
) -> RunResult:
    """Find the best thin version of `model` under the budget, fine-tune it, save it with its card, and print a table.

    A run that was killed goes on when started again with the same config; of one that is finished the table is printed
    again. Test images are read twice, for the full network and for the result; the steps between are measured on the
    holdout images.

    Args:
        adapted: what was done to a trained network, so that it fits the dataset; for the card.
        builder: makes the full network, for one that timm does not know; `from_pretrained` needs it again.
        on_phase: told the name of each phase of the work as it begins.
    Raises:
        EagleEyeError: the output folder is taken, there are several budgets, the budget is out of reach, or the model
            can't be pruned.
    """
    accelerator = Accelerator()
    run = open_run(config.output, "compress", finished=True)
    check_shared(run.path, "output", accelerator)
    check_settings(config)
    check_license(model, config)
    if config.finetune.epochs and not data.labelled:
        raise EagleEyeError(
            f"`epochs={config.finetune.epochs}`: `dataset={data.name}` has no labels to train on; give `--epochs 0`: "
            "layers are matched without labels"
        )
    model = model.to(accelerator.device).eval()
    graph = trace_network(model, config.search, config.strategy)
    if not data.labelled:
        data = teach(data, model)
    if run.has_result:
        check_same(run, config)
    else:
        _compress(model, graph, data, config, run, accelerator, adapted, builder, on_phase or (lambda _: None))
    with main_process_works():
        if accelerator.is_main_process:
            _finish(run, config, builder)
    return RunResult(folder=run.path, strategy=read_strategy(graph, str(run.path / "strategy.json")))


def _compress(
    model: nn.Module,
    graph: ChannelGraph,
    data: Splits,
    config: RunConfig,
    run: RunFolder,
    accelerator: Accelerator,
    adapted: str,
    builder: Build | None,
    on_phase: Callable[[str], None],
) -> None:
    """Everything up to a whole checkpoint."""
    if accelerator.is_main_process:
        run.write(RUN_FILE, settings_text(config))
        run.claim("search.jsonl", TRAINING, MATCHED, "logs")
    if not config.strategy:
        on_phase(SEARCH)
    score = make_score(model, graph, data, config, accelerator)
    strategy, origin = find_strategy(score, graph, config, run, accelerator)

    seen = data
    if strategy.image_size is not None:  # measured on images of its size, trained on those of the full network's
        seen = data.seen_by(score.build(strategy, compensate=False))

    def hold(network: nn.Module) -> Metrics:
        kept: dict[str, Any] = {"accelerator": accelerator, "num_workers": config.data.num_workers}
        batches = seen.holdout.cached_batches(device=accelerator.device, **kept)
        return evaluate_model(network, batches[accelerator.process_index :: accelerator.num_processes], accelerator)

    metrics = {"full": test_model(model, data, accelerator, config.data.num_workers)}
    pruned, steps = measure_steps(score, strategy, hold, config.repair.compensate)
    keep = score.choose_channels(strategy)
    del score  # its images and networks, before training needs the room
    free_memory()
    curve = list[EpochRecord]()
    network = {"model": config.network.model, "weights": config.network.weights}
    start = flat_dict(config.repair) | flat_dict(config.match)
    common: dict[str, Any] = {
        "holdout": seen.holdout,
        "calibration": data.calibration,
        "image_size": strategy.image_size,
        "accelerator": accelerator,
        "identity": config.images | network | start | strategy.to_dict() | {"channels": _digest(keep)},
        "num_workers": config.data.num_workers,
    }
    if config.match.match_steps != 0:
        on_phase(MATCHING)
        place = run.path / MATCHED
        gone = strategy.removed_blocks
        pruned = match_teacher(
            pruned, model, graph, keep, data.train, config.match, removed_blocks=gone, checkpoint=place, **common
        )
        steps["matched"] = hold(pruned.to(accelerator.device))
    last = list(steps)[-1]
    if config.finetune.epochs:
        on_phase(FINETUNING)
        last = "fine-tuned"
        place = run.path / TRAINING
        pruned = finetune_model(
            pruned, data.train, config.finetune, teacher=model, checkpoint=place, on_epoch=curve.append, **common
        )
    on_phase(MEASURING)
    data.train.release()
    metrics[last] = test_model(pruned, seen, accelerator, config.data.num_workers)
    with main_process_works():
        if accelerator.is_main_process:  # alone, so that nobody disturbs its measurements
            measured = Measured(
                strategy=strategy, origin=origin, metrics=metrics, steps=steps, curve=curve, adapted=adapted
            )
            save_result(model, pruned, graph, (data, seen), measured, config, run, accelerator, builder)


def _finish(run: RunFolder, config: RunConfig, builder: Build | None) -> None:
    """What comes after the checkpoint, again where a run was killed on the way."""
    run.remove(TRAINING, MATCHED, BASE)
    print(run.record["summary"])
    if config.publishing.push_to and not run.record["finished"]:
        publish_run(run.path, config.publishing.push_to, config.hub, builder)
    run.note(finished=True)


def _digest(keep: Mapping[str, Tensor]) -> str:
    """Which channels stay: where a criterion goes by images, another machine may choose others."""
    return f"{zlib.crc32(b''.join(name.encode() + keep[name].numpy().tobytes() for name in sorted(keep))):08x}"


def teach(data: Splits, model: nn.Module) -> Splits:
    """The same images with the full network's decisions for labels."""
    holdout, test = data.holdout, data.found_test
    assert isinstance(holdout, ImageSet)
    assert test is None or isinstance(test, ImageSet)
    return replace(data, holdout=TaughtImages(holdout, model), found_test=test and TaughtImages(test, model))


def test_model(network: nn.Module, data: Splits, accelerator: Accelerator, num_workers: int) -> Metrics:
    """Score a network on the test images, all processes together; it moves to the device."""
    part = accelerator.process_index, accelerator.num_processes
    batches = data.test.batches(part=part, num_workers=num_workers, device=accelerator.device)
    return evaluate_model(network.to(accelerator.device), batches, accelerator)


def check_settings(config: RunConfig) -> None:
    """Refuse what no run can do, before anything is loaded."""
    find_runtime(config.measuring)
    if config.strategy:
        read_origin(config.strategy)
    check_held_out(config.held_out)
    if config.publishing.push_to:
        check_repo(config.publishing.push_to, "push_to")
    if not config.strategy and len(config.search.budgets) > 1:
        raise EagleEyeError(
            f"a run takes one budget; got {'; '.join(map(str, config.search.budgets))}. Several in one search are for "
            "`eagleeye search`"
        )


def check_same(run: RunFolder, config: RunConfig) -> None:
    """Refuse settings that a finished run did not have; it would give its old result for them."""
    before, now = run.record.get("settings"), told_settings(config)
    if before is None or before == now:
        return
    other = ", ".join(
        f"{key}={before.get(key)} there, {key}={now.get(key)} here"
        for key in sorted({*before, *now})
        if before.get(key) != now.get(key)
    )
    raise EagleEyeError(f"`output={run.path}` holds the result of other settings ({other}); choose another folder")


def check_license(model: nn.Module, config: RunConfig) -> None:
    """Refuse to start what could not be published at the end."""
    if config.publishing.push_to and not license_of(model, config):
        raise EagleEyeError(
            f"`push_to={config.publishing.push_to}` needs a licence for the card, and `model={config.network.model}` "
            "tells none; give `license`, for example mit"
        )


def check_strategy(model: nn.Module, config: RunConfig) -> None:
    """Refuse a budget that no strategy of the network meets, or a file that holds none of it, before anything takes
    time."""
    graph = trace_network(model, config.search, config.strategy, tell=False)
    if config.strategy:
        _given_strategy(graph, config)
    else:
        check_reach(graph, config.search)


def _given_strategy(graph: ChannelGraph, config: RunConfig) -> Strategy:
    divisor = config.search.divisor  # a file tells its own widths
    return read_strategy(graph, str(config.strategy), 1 if divisor == "auto" else divisor)


def publish_run(folder: Path, repo: str, hub: HubConfig, builder: Build | None = None) -> None:
    """Push the saved result."""
    try:
        url = push_to_hub(folder, repo, private=hub.private or None, remote_code=hub.remote_code, builder=builder)
    except EagleEyeError as error:
        raise EagleEyeError(f"{error} The result is saved; publish it with: eagleeye push {folder} {repo}") from error
    print(f"published: {url}")


def find_strategy(
    score: AdaptiveBNScore, graph: ChannelGraph, config: RunConfig, run: RunFolder, accelerator: Accelerator
) -> tuple[Strategy, str]:
    """The given strategy, or the search's best; and how it was found."""
    if config.strategy:
        strategy, origin = _given_strategy(graph, config), "file"
        if accelerator.is_main_process:
            warn_of_criterion(config.strategy, score.criterion)
    else:
        result = run_search(
            score,
            graph,
            config.search,
            seed=config.seed,
            output=run.path,
            fingerprint=score.fingerprint(),
            accelerator=accelerator,
        )
        strategy, origin = result.best.strategy, result.best.origin
        if accelerator.is_main_process:
            for note in result.notes:
                warn(note)
    if accelerator.is_main_process:
        run.write("strategy.json", json.dumps(describe_strategy(graph, strategy, origin, score.criterion), indent=2))
    return strategy, origin
