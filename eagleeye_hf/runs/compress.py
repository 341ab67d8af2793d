"""One whole run on one model, dataset and budget."""

from __future__ import annotations

import importlib.util
import json
import shlex
import shutil
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

from eagleeye_hf.channels.cost import count_cost
from eagleeye_hf.channels.graph import ChannelGraph
from eagleeye_hf.configs import flat_dict, flat_items
from eagleeye_hf.data.splits import Splits
from eagleeye_hf.errors import EagleEyeError
from eagleeye_hf.evaluation.metrics import Metrics, evaluate_model
from eagleeye_hf.evaluation.score import AdaptiveBNScore, measure_steps
from eagleeye_hf.publishing.card import CardFacts, cost_table, write_card
from eagleeye_hf.publishing.checkpoint import from_pretrained, save_pretrained, state_bytes, weights_size
from eagleeye_hf.publishing.hub import push_to_hub
from eagleeye_hf.runs.arguments import write_settings
from eagleeye_hf.runs.config import HubConfig, RunConfig
from eagleeye_hf.runs.folder import prepare_output
from eagleeye_hf.runtimes.latency import Latency, compare_latency
from eagleeye_hf.search.run import run_search
from eagleeye_hf.strategies.files import describe_strategy, read_strategy
from eagleeye_hf.strategies.strategy import Strategy, named_widths
from eagleeye_hf.tracing.trace import trace_model
from eagleeye_hf.training.config import FinetuneConfig
from eagleeye_hf.training.finetune import EpochRecord, finetune_model

PICTURE = "result.png"


@dataclass(frozen=True, kw_only=True)
class RunResult:
    folder: Path
    strategy: Strategy
    facts: CardFacts


def compress_model(model: nn.Module, data: Splits, config: RunConfig) -> RunResult:
    """Find the best thin version of `model` under the budget, fine-tune it, save it with its card, and print a table.

    A run that was killed goes on when started again with the same config.

    Raises:
        EagleEyeError: the output folder is taken, there are several budgets, the budget is out of reach, or the model
            can't be pruned.
    """
    accelerator = Accelerator()
    folder = prepare_output(config.output)
    license_name = check_publishing(model, config)
    if accelerator.is_main_process:
        write_settings(config, folder)
    model = model.to(accelerator.device).eval()
    graph = trace_model(model)
    score = AdaptiveBNScore(
        model,
        graph,
        data.calibration.cached_batches(),
        data.holdout.cached_batches(),
        criterion=config.importance.criterion,
        compensate=config.scoring.score_compensated,
        seed=config.seed,
    )
    strategy, origin = find_strategy(score, graph, config, folder, accelerator)

    def test(network: nn.Module) -> Metrics:
        return test_model(network, data, accelerator, config.data.num_workers)

    metrics = {"full": test(model)}
    pruned, steps = measure_steps(score, strategy, test, config.repair.compensate)
    metrics |= steps
    curve: list[EpochRecord] = []
    if config.finetune.epochs:
        network = {"model": config.network.model, "weights": config.network.weights}
        pruned = finetune_model(
            pruned,
            data.train,
            config.finetune,
            teacher=model,
            holdout=data.holdout,
            calibration=data.calibration,
            accelerator=accelerator,
            checkpoint=folder / "training",
            identity=config.images | network | {"widths": list(strategy.widths)},
            num_workers=config.data.num_workers,
            on_epoch=curve.append,
        )
        metrics["fine-tuned"] = test(pruned)
    facts = CardFacts(
        base=config.network.model,
        graph=graph,
        strategy=strategy,
        dataset=data.name,
        dataset_revision=data.revision,
        metrics=metrics,
        holdout_images=data.holdout.count(),
        training_curve=[
            {key: value for key in ("epoch", "loss", "top1") if (value := getattr(record, key)) is not None}
            for record in curve
        ],
        latency=_measure(model, pruned, graph, config.onnx_latency),
        settings=_settings(config, origin),
        command=_command(accelerator),
        license=license_name,
        picture=PICTURE if importlib.util.find_spec("matplotlib") else "",
        file_bytes=(state_bytes(model), 0),
    )
    if accelerator.is_main_process:
        facts = save_run(pruned, facts, config, folder, data.label_names, curve)
        shutil.rmtree(folder / "training", ignore_errors=True)
        print_summary(facts, folder)
        if config.publishing.push_to:
            publish_run(folder, config.publishing.push_to, config.hub)
    accelerator.wait_for_everyone()
    return RunResult(folder=folder, strategy=strategy, facts=facts)


def test_model(network: nn.Module, data: Splits, accelerator: Accelerator, num_workers: int) -> Metrics:
    """Score a network on the test images, all processes together; it moves to the device."""
    part = accelerator.process_index, accelerator.num_processes
    batches = data.test.batches(part=part, num_workers=num_workers, device=accelerator.device)
    return evaluate_model(network.to(accelerator.device), batches, accelerator)


def check_publishing(model: nn.Module, config: RunConfig) -> str:
    """Find out before anything takes time what would be missing at the end; returns the result's licence."""
    if config.onnx_latency and not importlib.util.find_spec("onnxruntime"):
        raise EagleEyeError("`onnx_latency` needs onnx; install it with: pip install eagleeye-hf[onnx]")
    if not config.strategy and len(config.search.budgets) > 1:
        raise EagleEyeError(
            f"a run takes one budget; got {'; '.join(map(str, config.search.budgets))}. Several in one search are for "
            "`eagleeye search`"
        )
    found = config.publishing.license or (getattr(model, "pretrained_cfg", None) or {}).get("license") or ""
    if config.publishing.push_to and not found:
        raise EagleEyeError(
            f"`push_to={config.publishing.push_to}` needs a licence for the card, and `model={config.network.model}` "
            "tells none; give `license`, for example mit"
        )
    return str(found)


def publish_run(folder: Path, repo: str, hub: HubConfig) -> None:
    """Push the saved result."""
    try:
        url = push_to_hub(folder, repo, private=hub.private or None, remote_code=hub.remote_code)
    except EagleEyeError as error:
        raise EagleEyeError(f"{error} The result is saved; publish it with: eagleeye push {folder} {repo}") from error
    print(f"published: {url}")


def _measure(model: nn.Module, pruned: nn.Module, graph: ChannelGraph, onnx: bool) -> list[Latency]:
    """The pruned network beside the full one, in PyTorch and where wanted in ONNX Runtime."""
    found = compare_latency(model, [pruned], graph.input_size)
    if onnx:
        try:
            found += compare_latency(model, [pruned], graph.input_size, "onnxruntime")
        except Exception as error:  # the exporter raises many kinds, and a whole run must not end with them
            warnings.warn(f"the latency in ONNX Runtime is left out: {type(error).__name__}: {error}", stacklevel=2)
    return found


def find_strategy(
    score: AdaptiveBNScore, graph: ChannelGraph, config: RunConfig, folder: Path, accelerator: Accelerator
) -> tuple[Strategy, str]:
    """The given strategy, or the search's best; and how it was found."""
    if config.strategy:
        strategy, origin = read_strategy(graph, config.strategy, config.search.divisor), "file"
    else:
        result = run_search(
            score,
            graph,
            config.search,
            seed=config.seed,
            output=folder,
            fingerprint=score.fingerprint(),
            accelerator=accelerator,
        )
        strategy, origin = result.best.strategy, result.best.origin
        if accelerator.is_main_process:
            for note in result.notes:
                print(f"warning: {note}", file=sys.stderr)
    if accelerator.is_main_process:
        (folder / "strategy.json").write_text(json.dumps(describe_strategy(graph, strategy, origin), indent=2))
    return strategy, origin


def _settings(config: RunConfig, origin: str) -> dict[str, object]:
    settings: dict[str, object] = {"strategy": origin, "criterion": config.importance.criterion}
    settings["compensation"] = "least squares" if config.repair.compensate else "none"
    if not config.strategy:
        settings["candidates"] = config.search.candidates
        settings["budget"] = str(config.search.budgets[0])
    settings["calibration images"] = config.held_out.calibration_images
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
    command = "accelerate launch"
    if accelerator.num_processes > 1:
        command += f" --multi_gpu --num_processes {accelerator.num_processes}"
    if accelerator.mixed_precision != "no":
        command += f" --mixed_precision {accelerator.mixed_precision}"
    return f"{command} {shlex.join(sys.argv)}"


def save_run(
    pruned: nn.Module,
    facts: CardFacts,
    config: RunConfig,
    folder: Path,
    label_names: tuple[str, ...],
    curve: Sequence[EpochRecord] = (),
) -> CardFacts:
    """Save the checkpoint with its card, and make sure that it loads to the same outputs."""
    pruned = pruned.cpu().eval()
    size = state_bytes(pruned)
    assert facts.file_bytes is not None
    facts = CardFacts(**{**vars(facts), "file_bytes": (facts.file_bytes[0], size)})
    provenance = {
        "base_model": facts.base,
        "widths": named_widths(facts.graph, facts.strategy),
        "metrics": {step: m.to_dict() for step, m in facts.metrics.items()},
        "config": flat_dict(config),
        "training": [asdict(record) for record in curve],
    }
    if facts.picture:
        from eagleeye_hf.reports.result import draw_result  # needs the extra `plots`

        draw_result(facts.graph, facts.strategy, facts.metrics, folder / facts.picture, facts.training_curve)
    save_pretrained(  # last, for a folder with a checkpoint is a finished run
        pruned,
        folder,
        label_names=label_names,
        provenance=provenance,
        card=write_card(facts, config.publishing.push_to or str(folder), on_hub=bool(config.publishing.push_to)),
    )
    images = torch.randn(2, *facts.graph.input_size)
    with torch.inference_mode():
        torch.testing.assert_close(from_pretrained(folder)(images), pruned(images))
    assert weights_size(folder) >= size
    return facts


def print_summary(facts: CardFacts, folder: Path) -> None:
    """The closing table."""
    full, pruned = count_cost(facts.graph, facts.graph.widths), count_cost(facts.graph, facts.strategy)
    left = f"{pruned.macs / full.macs:.1%} of the MACs, {pruned.params / full.params:.1%} of the parameters"
    print(f"\n{facts.base}: {left}\n")
    rows = cost_table(facts)
    wide = max(len(row["name"]) for row in rows) + 4
    print("top-1 on the test images")
    for step, metrics in facts.metrics.items():
        print(f"  {step:{wide}}{metrics.top1:>12.2%}")
    print(f"\n  {'':{wide}}{'full':>12}{'pruned':>12}")
    for row in rows:
        print(f"  {row['name']:{wide}}{row['full']:>12}{row['pruned']:>12}")
    print(f"\nsaved in {folder}")
