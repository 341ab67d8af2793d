"""The whole job: search, prune, fine-tune, measure, save, publish. The recipes and the command line call it."""

from __future__ import annotations

import difflib
import importlib.util
import json
import os
import shlex
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import timm
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn

import eagleeye_hf.models  # noqa: F401  registers the CIFAR networks with timm
from eagleeye_hf.arguments import parse_config, run_main
from eagleeye_hf.channels.cost import count_cost
from eagleeye_hf.channels.graph import ChannelGraph
from eagleeye_hf.channels.strategy import Strategy
from eagleeye_hf.channels.strategy_file import read_strategy, strategy_to_dict
from eagleeye_hf.channels.trace import trace_model
from eagleeye_hf.data.splits import Splits
from eagleeye_hf.errors import EagleEyeError
from eagleeye_hf.evaluation.batchnorm import batch_norms, recalibrate_bn
from eagleeye_hf.evaluation.metrics import Metrics, evaluate_model
from eagleeye_hf.evaluation.score import AdaptiveBNScore
from eagleeye_hf.pruning.latency import describe_device, measure_latency
from eagleeye_hf.publishing.card import CardFacts, cost_table, write_card
from eagleeye_hf.publishing.checkpoint import check_free, from_pretrained, save_pretrained, weights_size
from eagleeye_hf.publishing.hub import push_to_hub
from eagleeye_hf.search.run import SearchConfig, run_search
from eagleeye_hf.training.finetune import FinetuneConfig, finetune_model

RUN_FILES = {"search", "strategy", "training"}
"""What an unfinished run may have left in its folder, without endings."""

PICTURE = "result.png"


def _flag(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything a run is told; each field is a flag of the recipes."""

    model: str = _flag("mobilenetv1_100.ra4_e3600_r224_in1k", "timm name of the trained network")
    weights: str | None = _flag(None, "safetensors file with its weights, instead of those of the Hub")
    dataset: str = _flag("ILSVRC/imagenet-1k", "Hub name or local folder of an image classification dataset")
    macs: float | None = _flag(0.5, "MACs to keep: a fraction of the full network, or an absolute number")
    params: float | None = _flag(None, "parameters to keep, likewise")
    tolerance: float = _flag(0.005, "how far the budget may be missed, as a fraction of the full network")
    divisor: int = _flag(1, "widths are multiples of this many channels")
    max_ratio: float = _flag(0.7, "largest fraction of channels removed from a group")
    criterion: str = _flag("l1", "which channels stay: l1, l2, bn_scale or geometric_median")
    candidates: int = _flag(1000, "strategies to score")
    calibration_images: int = _flag(1024, "training images that recompute BatchNorm statistics")
    holdout_images: int = _flag(2048, "training images that score the candidates")
    strategy: str | None = _flag(None, "JSON file (or FILE#NAME) with pruning ratios; skips the search")
    epochs: int = _flag(120, "epochs of fine-tuning")
    batch_size: int = _flag(512, "images per step, all processes together")
    lr: float = _flag(0.01, "highest learning rate of fine-tuning")
    distillation: float = _flag(0.5, "weight of the full network's outputs in fine-tuning; 0 turns it off")
    num_workers: int = _flag(4, "processes that decode training images, per training process")
    seed: int = _flag(0, "of everything random")
    output: str = _flag("outputs/mbv1", "folder for the journal, the checkpoint and the card")
    push_to: str | None = _flag(None, "Hub repo to publish the result in")

    @property
    def search(self) -> SearchConfig:
        keys = ("macs", "params", "tolerance", "divisor", "max_ratio", "candidates", "seed")
        return SearchConfig(**{key: getattr(self, key) for key in keys})

    @property
    def finetune(self) -> FinetuneConfig:
        keys = ("epochs", "batch_size", "lr", "distillation", "num_workers")
        return FinetuneConfig(**{key: getattr(self, key) for key in keys})


@dataclass(frozen=True, kw_only=True)
class RunResult:
    folder: Path
    strategy: Strategy
    facts: CardFacts


Config = TypeVar("Config", bound=RunConfig)


def run_recipe(main: Callable[[Config], None], config_class: type[Config]) -> None:
    """Parse the command line into a config and run; bad input ends with one line and exit code 2."""

    def start(config: Config) -> None:
        _use_all_cores()
        prepare_output(config)  # before anything takes time
        set_seed(config.seed)
        main(config)

    sys.exit(run_main(start, lambda: parse_config(config_class, None, main.__doc__)))


def _use_all_cores() -> None:
    """On a CPU, `accelerate launch` leaves one thread to each process; share all cores out instead."""
    if not torch.cuda.is_available():
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def load_model(name: str, weights: str | None = None) -> nn.Module:
    """A trained network of timm: its weights from a safetensors file, or from the Hub.

    Raises:
        EagleEyeError: the name is unknown, the weights can't be had or don't fit, or there is no BatchNorm in it.
    """
    model = _load_model(name, weights)
    batch_norms(model)
    return model


def check_name(name: str) -> None:
    """Refuse what neither timm nor the Hub can know."""
    if not timm.is_model(name.split(".")[0]) and ":" not in name:
        close = difflib.get_close_matches(name.split(".")[0], timm.list_models(), n=4)
        raise EagleEyeError(
            f"`model={name}` is no model of timm{'; did you mean ' + ', '.join(close) if close else ''}"
        )


def _load_model(name: str, weights: str | None) -> nn.Module:
    check_name(name)
    if weights is None:
        try:
            return timm.create_model(name, pretrained=True)
        except Exception as error:  # timm and the Hub raise many kinds
            raise EagleEyeError(
                f"`model={name}`: its trained weights can't be loaded "
                f"({type(error).__name__}: {str(error).splitlines()[0]}); "
                "check the connection, or give a file with `weights`"
            ) from error
    try:
        with safe_open(weights, "pt") as file:
            shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise EagleEyeError(f"`weights={weights}` can't be read as safetensors: {error}") from error
    classifier = timm.get_pretrained_cfg_value(name, "classifier") or "classifier"
    classifier = classifier[0] if isinstance(classifier, (tuple, list)) else classifier
    outputs = shapes.get(f"{classifier}.weight", [None])[0]
    model = timm.create_model(name, **({"num_classes": outputs} if outputs else {}))
    try:
        model.load_state_dict(load_file(weights))
    except RuntimeError as error:
        raise EagleEyeError(
            f"`weights={weights}` does not fit `model={name}`: {' '.join(str(error).split())[:300]}"
        ) from error
    return model


def prepare_output(config: RunConfig) -> Path:
    """The run's folder: new, empty, or one that the same run left unfinished."""
    folder = Path(config.output)
    check_free(folder)
    strange = [path.name for path in folder.iterdir() if path.stem not in RUN_FILES] if folder.is_dir() else []
    if strange:
        raise EagleEyeError(
            f"`output={folder}` is not empty (it holds {', '.join(strange[:3])}); choose another folder"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".writable").touch()
        (folder / ".writable").unlink()
    except OSError as error:
        raise EagleEyeError(f"`output={folder}` can't be written: {error}") from error
    return folder


def compress_model(model: nn.Module, data: Splits, config: RunConfig) -> RunResult:
    """Find the best thin version of `model` under the budget, fine-tune it, save it with its card, and print a table.

    A run that was killed goes on when started again with the same config.

    Raises:
        EagleEyeError: the output folder is taken, the budget is out of reach, or the model can't be pruned.
    """
    accelerator = Accelerator()
    folder = prepare_output(config)
    model = model.to(accelerator.device).eval()
    calibration = data.calibration.cached_batches()
    graph = trace_model(model)
    score = AdaptiveBNScore(model, graph, calibration, data.holdout.cached_batches(), criterion=config.criterion)
    strategy = find_strategy(score, graph, config, folder, accelerator)

    def test(network: nn.Module) -> Metrics:
        part = accelerator.process_index, accelerator.num_processes
        return evaluate_model(network, data.test.batches(part=part), accelerator)

    metrics = {"full": test(model)}
    pruned = score.build(strategy.widths)
    metrics["vanilla"] = test(pruned)
    metrics["adaptive"] = test(recalibrate_bn(pruned, calibration))
    if config.epochs:
        pruned = finetune_model(
            pruned,
            data.train,
            config.finetune,
            teacher=model,
            accelerator=accelerator,
            checkpoint=folder / "training",
        )
        metrics["fine-tuned"] = test(pruned.to(accelerator.device))
    facts = CardFacts(
        base=config.model,
        graph=graph,
        widths=strategy.widths,
        dataset=data.name,
        metrics=metrics,
        holdout_images=data.holdout.count(),
        latency_ms=tuple(measure_latency([model, pruned], graph.input_size)),  # type: ignore[arg-type]
        device=describe_device(accelerator.device),
        settings=_settings(config, strategy),
        command=f"accelerate launch {shlex.join(sys.argv)}",
        license=str((getattr(model, "pretrained_cfg", None) or {}).get("license") or ""),
        picture=PICTURE if importlib.util.find_spec("matplotlib") else "",
        file_bytes=(sum(t.numel() * t.element_size() for t in model.state_dict().values()), 0),
    )
    if accelerator.is_main_process:
        facts = save_run(pruned, facts, config, folder, data.label_names)
        shutil.rmtree(folder / "training", ignore_errors=True)
        print_summary(facts, folder)
        if config.push_to:
            print(f"published: {push_to_hub(folder, config.push_to)}")
    accelerator.wait_for_everyone()
    return RunResult(folder=folder, strategy=strategy, facts=facts)


def find_strategy(
    score: AdaptiveBNScore, graph: ChannelGraph, config: RunConfig, folder: Path, accelerator: Accelerator
) -> Strategy:
    """The given strategy, or the search's best."""
    if config.strategy:
        strategy = read_strategy(graph, config.strategy, config.divisor)
    else:
        result = run_search(
            score, graph, config.search, output=folder, fingerprint=score.fingerprint(), accelerator=accelerator
        )
        strategy = result.best.strategy
    if accelerator.is_main_process:
        (folder / "strategy.json").write_text(json.dumps(strategy_to_dict(graph, strategy), indent=2))
    return strategy


def _settings(config: RunConfig, strategy: Strategy) -> dict[str, object]:
    settings: dict[str, object] = {"strategy": strategy.origin, "criterion": config.criterion}
    if not config.strategy:
        settings["candidates"] = config.candidates
        settings["budget"] = ", ".join(f"{k} {getattr(config, k)}" for k in ("macs", "params") if getattr(config, k))
    settings["calibration images"] = config.calibration_images
    if config.epochs:
        training = {k: v for k, v in asdict(config.finetune).items() if k != "num_workers"}
        settings["fine-tuning"] = ", ".join(f"{key} {value}" for key, value in training.items())
    return settings | {"seed": config.seed}


def save_run(
    pruned: nn.Module, facts: CardFacts, config: RunConfig, folder: Path, label_names: tuple[str, ...]
) -> CardFacts:
    """Save the checkpoint with its card, and make sure that it loads to the same outputs."""
    pruned = pruned.cpu().eval()
    size = sum(t.numel() * t.element_size() for t in pruned.state_dict().values())
    assert facts.file_bytes is not None
    facts = CardFacts(**{**vars(facts), "file_bytes": (facts.file_bytes[0], size)})
    provenance = {
        "base_model": facts.base,
        "widths": {g.name: w for g, w in zip(facts.graph.groups, facts.widths, strict=True) if g.prunable},
        "metrics": {stage: m.to_dict() for stage, m in facts.metrics.items()},
        "config": asdict(config),
    }
    save_pretrained(
        pruned,
        folder,
        label_names=label_names,
        provenance=provenance,
        card=write_card(facts, config.push_to or str(folder), on_hub=bool(config.push_to)),
    )
    if facts.picture:
        from eagleeye_hf.publishing.plots import draw_result  # needs the extra `plots`

        draw_result(facts.graph, facts.widths, dict(facts.metrics), folder / facts.picture)
    images = torch.randn(2, *facts.graph.input_size)
    with torch.inference_mode():
        torch.testing.assert_close(from_pretrained(folder)(images), pruned(images))
    assert weights_size(folder) >= size
    return facts


def print_summary(facts: CardFacts, folder: Path) -> None:
    """The closing table."""
    full, pruned = count_cost(facts.graph, facts.graph.widths), count_cost(facts.graph, facts.widths)
    share = f"{pruned.macs / full.macs:.1%} of the MACs, {pruned.params / full.params:.1%} of the parameters"
    print(f"\n{facts.base}: {share}\n")
    rows = cost_table(facts)
    wide = max(len(row["name"]) for row in rows) + 4
    print("top-1 on the test images")
    for stage, metrics in facts.metrics.items():
        print(f"  {stage:{wide}}{metrics.top1:>12.2%}")
    print(f"\n  {'':{wide}}{'full':>12}{'pruned':>12}")
    for row in rows:
        print(f"  {row['name']:{wide}}{row['full']:>12}{row['pruned']:>12}")
    print(f"\nsaved in {folder}")
