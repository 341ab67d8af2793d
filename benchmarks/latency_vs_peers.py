"""Four ways to half the milliseconds in ONNX Runtime, then the same short training.

    python benchmarks/latency_vs_peers.py search --arm ours --task imagenette --weights FILE --data DIR
    python benchmarks/latency_vs_peers.py train --arm ours --task imagenette --seed 0 --data DIR
    python benchmarks/latency_vs_peers.py time --task imagenette --weights FILE --data DIR
    python benchmarks/latency_vs_peers.py table

Tasks: `imagenette` (EfficientNet-Lite0 with a head of ten classes, 160 px) and `cifar10` (ResNet-56). Every arm gets
the same trained network, one core, and the same budget: half of the full network's milliseconds, one image, one thread.

- `ours`: `run_search` under `latency=0.5`, compensated scores, widths alone; `ours_blocks` may remove blocks, too,
  which these peers don't; `ours_same` and `ours_fastnas` under what `torch_pruning` and `fastnas` reach, where these
  can't reach half.
- `torch_pruning`: Torch-Pruning, the same ratio everywhere, L1, `round_to=8`; the ratio that gives the time.
- `paper`: EagleEye's procedure by MACs (any width, random ratios, rejection, statistics in the momentum form; run by
  this package's code), at the MACs that take half the time on average; scored as long as `ours` took.
- `fastnas`: NVIDIA ModelOpt's FastNAS under a bound on FLOPs, which is lowered until the time is met.

Every step keeps its result in `--output` and is skipped where that stands; peers: `pip install
eagleeye-hf[benchmarks]`.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks import cifar_tensors as cifar
from benchmarks import imagenette_tensors as imagenette
from benchmarks.pages import sections_of
from benchmarks.peers import count_macs
from eagleeye_hf import (
    AdaptiveBNScore,
    Budget,
    SearchConfig,
    choose_channels,
    load_model,
    recalibrate_bn,
    run_search,
    sample_strategies,
    slice_model,
    trace_model,
)
from eagleeye_hf.runtimes.config import LatencyConfig
from eagleeye_hf.runtimes.latency import compare_latency, take_turns
from eagleeye_hf.runtimes.runtime import find_runtime

ARMS = {
    "ours": "eagleeye_hf, `latency=0.5`",
    "ours_blocks": "the same, widths and blocks",
    "ours_same": "eagleeye_hf, at the time that Torch-Pruning reaches",
    "ours_fastnas": "eagleeye_hf, at the time that FastNAS reaches",
    "torch_pruning": "Torch-Pruning, uniform, `round_to=8`",
    "paper": "EagleEye's procedure by MACs",
    "fastnas": "NVIDIA ModelOpt FastNAS",
}
TITLES = {"imagenette": "EfficientNet-Lite0, Imagenette at 160 px", "cifar10": "ResNet-56, CIFAR-10"}
REMARKS = (
    "Torch-Pruning and FastNAS can't follow the zero-padded shortcuts of ResNet-56, so they prune the inner widths of "
    "its blocks alone, and end above half of the time. The paper's procedure draws any width, and in this runtime few "
    "widths are fast; half of the time then leaves few MACs."
)
HALF, SLACK = 0.5, 0.02
ROUNDS = 200
CONFIG = LatencyConfig(runtime="onnxruntime", threads=1)
CANDIDATES = {"imagenette": 160, "cifar10": 200}
EPOCHS = {"imagenette": 2, "cifar10": 2}
LR = {"imagenette": 0.02, "cifar10": 0.02}
SIZES = {"imagenette": (3, imagenette.PIXELS, imagenette.PIXELS), "cifar10": (3, 32, 32)}


class Task:
    """A trained network and its images."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.name, self.data, self.cache = arguments.task, arguments.data, arguments.output
        self.weights, self.size = arguments.weights, SIZES[arguments.task]

    def model(self) -> nn.Module:
        if self.name == "cifar10":
            return load_model("resnet56_cifar", str(self.weights)).eval()
        return imagenette.ten_classes(self.weights, self.data, self.cache)

    def held_out(self) -> tuple[list, list]:
        """Batches that calibrate and score: 1,024 training images each, which no training sees."""
        if self.name == "cifar10":
            images, labels = cifar.load_tensors(self.data, "train", self.cache)
            images, labels, batches = images[cifar.NUM_TRAIN :], labels[cifar.NUM_TRAIN :], cifar.batches
        else:
            images, labels = imagenette.load_photographs(self.data, "train", self.cache)
            images, labels = images[-imagenette.NUM_HELD_OUT :], labels[-imagenette.NUM_HELD_OUT :]
            batches = imagenette.batches
        return batches(images[:1024], labels[:1024]), batches(images[1024:2048], labels[1024:2048])

    def train(self, model: nn.Module, seed: int, epochs: int) -> None:
        if self.name == "cifar10":
            images, labels = cifar.load_tensors(self.data, "train", self.cache)
            part = slice(cifar.NUM_TRAIN)
            cifar.finetune(model, images[part], labels[part], epochs, seed, LR[self.name])
            return
        pixels = imagenette.PIXELS + imagenette.MARGIN
        images, labels = imagenette.load_photographs(self.data, "train", self.cache, pixels)
        part = slice(-imagenette.NUM_HELD_OUT)
        for step in imagenette.train_steps(model, images[part], labels[part], epochs, seed, LR[self.name]):
            if step % 50 == 0:
                print(f"step {step}", flush=True)

    def test(self, model: nn.Module) -> float:
        if self.name == "cifar10":
            return cifar.test_accuracy(model, *cifar.load_tensors(self.data, "test", self.cache))
        return imagenette.top1_of(model, *imagenette.load_photographs(self.data, "validation", self.cache))


def time_left(full: nn.Module, thin: nn.Module, size: tuple[int, ...], rounds: int = 60) -> float:
    """Milliseconds of a thin network as a fraction of the full one's, which takes turns with it."""
    model = copy.deepcopy(thin).to(memory_format=torch.contiguous_format)
    (found,) = compare_latency(full, [model], size, find_runtime(CONFIG), rounds)
    return found.milliseconds / found.full_ms


def bring_to_time(
    build: Callable[[float], nn.Module], full: nn.Module, size: tuple[int, ...]
) -> tuple[nn.Module, float]:
    """The network, of those between the mildest (0) and the harshest (1) setting, that takes half the time.

    Returns:
        It and its setting; the one nearest to half where none is within two hundredths.
    """
    low, high, nearest, best = 0.0, 1.0, 1e9, None
    for _ in range(10):
        middle = (low + high) / 2
        thin = build(middle)
        left = time_left(full, thin, size)
        print(f"setting {middle:.3f}: {left:.3f} of the time", flush=True)
        if abs(left - HALF) < nearest:
            nearest, best = abs(left - HALF), (thin, middle)
        if abs(left - HALF) <= SLACK * HALF:
            break
        low, high = (middle, high) if left > HALF else (low, middle)
    assert best is not None
    return best


def search_ours(task: Task, model: nn.Module, folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    graph = trace_model(model, task.size)
    calibration, holdout = task.held_out()
    score = AdaptiveBNScore(model, graph, calibration, holdout, compensate=True, latency=CONFIG)
    bound = HALF
    rival = {"ours_same": "torch_pruning", "ours_fastnas": "fastnas"}.get(folder.name.removeprefix(f"{task.name}_"))
    if rival:
        bound = json.loads((folder.parent / f"{task.name}_{rival}" / "search.json").read_text())["time"]
    dimensions = ("width", "depth") if folder.name.endswith("_blocks") else ("width",)
    config = SearchConfig(latency=bound, candidates=CANDIDATES[task.name], max_ratio=0.85, dimensions=dimensions)
    result = run_search(score, graph, config, output=folder, fingerprint=score.fingerprint())
    best = result.best
    thin = recalibrate_bn(score.build(best.strategy), calibration)
    return thin, {"candidates": len(result.candidates), "origin": best.origin, "notes": list(result.notes)}


def search_torch_pruning(task: Task, model: nn.Module, folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    import torch_pruning as tp

    keep = [m for n, m in model.named_modules() if isinstance(m, nn.Linear) or _is_pinned(task, n, m)]

    def build(setting: float) -> nn.Module:
        thin = copy.deepcopy(model)
        places = {id(old): new for old, new in zip(model.modules(), thin.modules(), strict=True)}
        pruner = tp.pruner.MetaPruner(
            thin,
            torch.randn(1, *task.size),
            importance=tp.importance.MagnitudeImportance(p=1),
            pruning_ratio=0.95 * setting,
            ignored_layers=[places[id(layer)] for layer in keep],
            round_to=8,
        )
        pruner.step()
        return thin.eval()

    thin, setting = bring_to_time(build, model, task.size)
    return recalibrate_bn(thin, task.held_out()[0]), {"ratio": 0.95 * setting}


def _is_pinned(task: Task, name: str, module: nn.Module) -> bool:
    """Torch-Pruning ties the wrong channels through the zero-padded shortcuts of the CIFAR ResNets."""
    return task.name == "cifar10" and isinstance(module, nn.Conv2d) and not name.endswith(".conv1")


def search_paper(task: Task, model: nn.Module, folder: Path, seconds: float) -> tuple[nn.Module, dict[str, Any]]:
    graph = trace_model(model, task.size)
    calibration, holdout = task.held_out()

    def typical(macs: float) -> float:
        drawn = sample_strategies(graph, Budget(macs=macs), 4, seed=5, max_ratio=0.95)[1:]
        thin = [slice_model(model, graph, choose_channels(model, graph, one.widths)).eval() for one in drawn]
        return statistics.mean(time_left(model, one, task.size, 20) for one in thin)

    low, high = 0.05, 0.8
    for _ in range(7):
        middle = (low + high) / 2
        low, high = (low, middle) if typical(middle) > HALF else (middle, high)
    paper: dict[str, Any] = {"criterion": "l1", "momentum": 0.9, "format": "float32"}
    score = AdaptiveBNScore(model, graph, calibration, holdout, latency=CONFIG, **paper)
    config = SearchConfig(
        macs=low, method="random", divisor=1, max_ratio=0.95, stages=(1.0,), candidates=None, minutes=seconds / 60,
        generation=4,
    )  # fmt: skip
    result = run_search(score, graph, config, output=folder, fingerprint=score.fingerprint())
    scored = [c for c in result.candidates if c.score and c.origin == "random"]
    scored.sort(key=lambda c: -c.score.reported if c.score else 0.0)  # the paper ranks by accuracy
    for candidate in scored[:20]:  # the best that keeps the time
        thin = score.build(candidate.strategy)
        if time_left(model, thin, task.size) <= HALF * (1 + SLACK):
            return recalibrate_bn(thin, calibration), {"candidates": len(scored), "macs_asked": low}
    return recalibrate_bn(score.build(scored[0].strategy), calibration), {"candidates": len(scored), "macs_asked": low}


def search_fastnas(task: Task, model: nn.Module, folder: Path) -> tuple[nn.Module | None, dict[str, Any]]:
    """Each layer's widths are scored alone, once; then a bound on FLOPs is met for every try of the time."""
    import modelopt.torch.prune as mtp
    from modelopt.torch.opt.conversion import ApplyModeError

    calibration, holdout = task.held_out()
    few = {"imagenette": (2, 4), "cifar10": (4, 8)}[task.name]  # batches, so that all scores take minutes
    divisor = 16 if task.name == "imagenette" else 8
    conv = {"channels_ratio": tuple(0.05 * i for i in range(1, 21)), "kernel_size": (), "channel_divisor": divisor}
    rules = {
        "nn.Conv2d": {"*": conv},
        "nn.BatchNorm2d": {"*": {"feature_divisor": divisor}},
        "nn.Linear": {"*": {"feature_divisor": divisor}},
    }
    scores = 0

    def score(candidate: nn.Module) -> float:
        nonlocal scores
        scores += 1
        if scores % 50 == 0:
            print(f"fastnas: {scores} scores", flush=True)
        candidate.eval()
        with torch.no_grad():
            right = sum(int((candidate(images).argmax(1) == labels).sum()) for images, labels in holdout[: few[1]])
        return right / sum(len(labels) for _, labels in holdout[: few[1]])

    def build(setting: float) -> nn.Module:
        pruned, _ = mtp.prune(
            copy.deepcopy(model),
            mode=[("fastnas", rules)],
            constraints={"flops": f"{100 * (0.95 - 0.64 * setting):g}%"},
            dummy_input=torch.randn(1, *task.size),
            config={
                "data_loader": calibration[: few[0]],
                "score_func": score,
                "collect_func": lambda batch: batch[0],
                "max_iter_data_loader": few[0],
                "checkpoint": str(folder / "fastnas.pth"),
            },
        )
        return _plain_copy(model, pruned)

    try:
        thin, setting = bring_to_time(build, model, task.size)
    except ApplyModeError as error:  # it finds nothing that it could prune
        return None, {"failed": " ".join(str(error).split())[:60]}
    return recalibrate_bn(thin, calibration), {"candidates": scores, "flops_asked": 0.95 - 0.64 * setting}


def _plain_copy(model: nn.Module, pruned: nn.Module) -> nn.Module:
    """The pruned network in the modules of the full one, without ModelOpt's bookkeeping."""
    plain, state = copy.deepcopy(model), pruned.state_dict()
    for key, module in plain.named_modules():
        if isinstance(module, nn.Conv2d):
            weight = state[f"{key}.weight"]
            module.groups = len(weight) if module.groups > 1 else 1
            module.out_channels, module.in_channels = len(weight), weight.shape[1] * module.groups
            module.weight = nn.Parameter(weight.clone())
        elif isinstance(module, nn.BatchNorm2d):
            module.num_features = len(state[f"{key}.weight"])
            for name in ("weight", "bias"):
                setattr(module, name, nn.Parameter(state[f"{key}.{name}"].clone()))
            for name in ("running_mean", "running_var"):
                setattr(module, name, state[f"{key}.{name}"].clone())
        elif isinstance(module, nn.Linear):
            module.in_features = state[f"{key}.weight"].shape[1]
            module.weight = nn.Parameter(state[f"{key}.weight"].clone())
    plain.load_state_dict(state)
    return plain.eval()


def search(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    task = Task(arguments)
    model = task.model()
    started = time.perf_counter()
    if arguments.arm == "paper":
        ours = json.loads((folder.parent / f"{task.name}_ours" / "search.json").read_text())
        chosen, facts = search_paper(task, model, folder, ours["seconds"])
    else:
        arms = {
            "ours": search_ours,
            "ours_blocks": search_ours,
            "ours_same": search_ours,
            "ours_fastnas": search_ours,
            "torch_pruning": search_torch_pruning,
            "fastnas": search_fastnas,
        }
        chosen, facts = arms[arguments.arm](task, model, folder)
    facts["seconds"] = time.perf_counter() - started
    if chosen is None:
        return facts
    torch.save(chosen, folder / "choice.pt")
    macs = count_macs(copy.deepcopy(chosen), (1, *task.size)) / count_macs(copy.deepcopy(model), (1, *task.size))
    params = sum(p.numel() for p in chosen.parameters()) / sum(p.numel() for p in model.parameters())
    facts |= {"macs": macs, "params": params, "full_top1": task.test(copy.deepcopy(model))}
    return facts | {"time": time_left(model, chosen, task.size), "before": task.test(copy.deepcopy(chosen))}


def measure_together(arguments: argparse.Namespace) -> None:
    """The times of all choices of a task, in the same random turns."""
    task, runtime = Task(arguments), find_runtime(CONFIG)
    images = torch.randn(1, *task.size)
    files = [file for arm in ARMS if (file := arguments.output / f"{task.name}_{arm}" / "choice.pt").exists()]
    chosen = [torch.load(file, weights_only=False).to(memory_format=torch.contiguous_format) for file in files]
    programs = [runtime.load(model.eval(), images) for model in (task.model(), *chosen)]
    full, *times = [min(turns) for turns in take_turns(programs, ROUNDS)]
    for file, milliseconds in zip(files, times, strict=True):
        record = file.with_name("search.json")
        record.write_text(json.dumps(json.loads(record.read_text()) | {"time": milliseconds / full}, indent=1))
        print(f"{file.parent.name}: {milliseconds / full:.3f} of {full:.2f} ms", flush=True)


def train(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    task = Task(arguments)
    model = torch.load(folder / "choice.pt", weights_only=False) if arguments.arm != "full" else task.model()
    started = time.perf_counter()
    task.train(model, arguments.seed, EPOCHS[task.name])
    return {"top1": task.test(model), "seconds": time.perf_counter() - started}


def write_table(folder: Path, page: Path) -> None:
    """A task that was not run here stays as it is."""
    before = sections_of(page.read_text().partition(REMARKS)[0])
    lines = [
        "# Half the milliseconds, against peers",
        "",
        "Made by `latency_vs_peers.py`: half of the full network's milliseconds in ONNX Runtime (one image, one thread "
        "of a CPU), every arm's choice brought to that time, then the same training for all: labels only, SGD, cosine "
        "from 0.02; 2 epochs of 7,421 photographs in bfloat16, or 2 epochs of 40,000 CIFAR-10 images in float32; test "
        f"top-1. `time`: of all choices and the full network, in the same {ROUNDS} random turns at the end.",
        "",
    ]
    for task, title in TITLES.items():
        rows = []
        for arm, name in ARMS.items():
            place = folder / f"{task}_{arm}"
            if not (place / "search.json").exists():
                continue
            found = json.loads((place / "search.json").read_text())
            if "failed" in found:
                rows.append(f"| {name} | fails: {found['failed']} | | | | | | |")
                continue
            trained = [json.loads(file.read_text())["top1"] for file in sorted(place.glob("trained_*.json"))]
            mean = f"{np.mean(trained):.2%}" if trained else ""
            rows.append(
                f"| {name} | {found['time']:.3f} | {found['macs']:.0%} | {found['params']:.0%} | {found['before']:.2%} "
                f"| {', '.join(f'{one:.2%}' for one in trained)} | **{mean}** | {found['seconds'] / 60:.0f} min |"
            )
        if rows:
            full = json.loads((folder / f"{task}_ours" / "search.json").read_text())["full_top1"]
            lines += [f"## {title}", "", f"Full network: {full:.2%}.", ""]
            lines += ["| choice | time | MACs | parameters | before training | after, by seed | mean | search |"]
            lines += ["|---|---:|---:|---:|---:|---:|---:|---:|", *rows, ""]
        elif title in before:
            lines += [f"## {title}", "", before[title], ""]
    lines += [REMARKS]
    page.write_text("\n".join(lines).rstrip() + "\n")
    print(page.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("search", "train", "time", "table"))
    parser.add_argument("--arm", choices=tuple(ARMS))
    parser.add_argument("--task", choices=tuple(TITLES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--output", type=Path, default=Path("outputs/latency_vs_peers"))
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    if arguments.step == "table":
        write_table(arguments.output, Path(__file__).with_suffix(".md"))
        return
    torch.set_num_threads(1)
    if arguments.step == "time":
        measure_together(arguments)
        return
    folder = arguments.output / f"{arguments.task}_{arguments.arm}"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / ("search.json" if arguments.step == "search" else f"trained_{arguments.seed}.json")
    if not file.exists():
        file.write_text(json.dumps((search if arguments.step == "search" else train)(arguments, folder), indent=1))
    print(file, file.read_text())


if __name__ == "__main__":
    main()
