"""Which channels stay: criteria of importance, before any training, after matching, and after a short training.

    python -m benchmarks.criteria run --network resnet20_cifar        # about 25 minutes of one core
    python -m benchmarks.criteria table                               # writes criteria.md

Needs ../shared (CIFAR-10, Imagenette, weights). Every criterion chooses among the channels of one uniform strategy, at
half and at 30% of the MACs. Layers that read removed channels are repaired; then 100 steps without labels
(`match_teacher`), then one epoch on a part of the training images (`training_choices.py` has the sizes). Top-1 on
holdout images, and on test images in the last two columns; means of the seeds, of what is random in a criterion and of
the order and crops of images. Defaults are chosen by the holdout images. Results stay in --output.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from accelerate import Accelerator
from torch import Tensor

from benchmarks.matching import TensorImages
from benchmarks.training_choices import SEEDS, Task, open_task, score_network, train_network
from eagleeye_hf import Budget, MatchConfig, Strategy, match_teacher, recalibrate_bn, sample_strategies, trace_model
from eagleeye_hf.pruning.builder import Builder
from eagleeye_hf.pruning.config import Criterion

CRITERIA: Sequence[Criterion] = get_args(Criterion)
BUDGETS = (0.5, 0.3)
STEPS, RATE, DIVISOR = 100, 0.02, 8
STAGES = ("adaptive", "compensated", "matched", "trained")


def try_criterion(task: Task, graph: Any, criterion: Criterion, macs: float, seed: int) -> dict[str, Any]:
    """Top-1 and loss on holdout and test images at each stage, and the seconds that choosing took."""
    calibration = [(task.normalize(part), label) for part, label in zip(*_batches(task), strict=True)]
    started = time.perf_counter()
    builder = Builder(task.full, graph, calibration, criterion, seed)
    (uniform,) = sample_strategies(graph, Budget(macs=macs), 1, divisor=DIVISOR)
    strategy = Strategy(uniform.widths)
    keep = builder.importance.choose(strategy.widths)
    found: dict[str, Any] = {"seconds": time.perf_counter() - started}
    for stage, compensate in (("adaptive", False), ("compensated", True)):
        thin = recalibrate_bn(builder.build(strategy, compensate), calibration)
        found[stage] = score_network(task, thin)
    images = TensorImages(task.augment, task.train[0], seed)
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    how = MatchConfig(match_steps=STEPS)
    matched = match_teacher(thin, task.full, graph, keep, images, how, accelerator=accelerator)
    found["matched"] = score_network(task, matched)
    found["trained"] = score_network(task, train_network(task, matched, RATE, "logits", seed, epochs=1))
    return found


def _batches(task: Task) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    return task.calibration.split(128), task.calibration_labels.split(128)


def run(name: str, output: Path, seeds: Sequence[int], budgets: Sequence[float], criteria: Sequence[Criterion]) -> None:
    torch.set_num_threads(1)
    folder = output / name
    folder.mkdir(parents=True, exist_ok=True)
    task = open_task(name, output)
    graph = trace_model(task.full, tuple(task.normalize(task.calibration[:1]).shape[1:]))
    for seed in seeds:
        for macs in budgets:
            for criterion in criteria:
                file = folder / f"{criterion}-{macs}-{seed}.json"
                if not file.exists():
                    found = try_criterion(task, graph, criterion, macs, seed)
                    file.write_text(json.dumps(found, indent=1))
                    told = {stage: round(found[stage]["holdout"], 4) for stage in STAGES}
                    print(name, criterion, macs, seed, told, flush=True)


def table(output: Path) -> None:
    lines = ["# Criteria of importance", "", (__doc__ or "").split("\n\n")[2].replace("\n", " ")]
    for name in ("resnet20_cifar", "tf_efficientnet_lite0"):
        for macs in BUDGETS:
            files = {c: [output / name / f"{c}-{macs}-{seed}.json" for seed in SEEDS] for c in CRITERIA}
            rows = {c: [json.loads(f.read_text()) for f in found if f.exists()] for c, found in files.items()}
            if not any(rows.values()):
                continue
            lines += ["", f"## {name}, {macs:.0%} of the MACs", ""]
            lines += [
                "| criterion | seeds | seconds | adaptive | compensated | matched | trained | test: matched | trained |"
            ]
            lines += ["|---|---:|---:|---:|---:|---:|---:|---:|---:|"]
            for criterion, runs in rows.items():
                if not runs:
                    continue
                cells = [f"`{criterion}`", str(len(runs)), f"{statistics.mean(row['seconds'] for row in runs):.1f}"]
                cells += [f"{statistics.mean(row[stage]['holdout'] for row in runs):.2%}" for stage in STAGES]
                cells += [
                    f"**{statistics.mean(row[stage]['test'] for row in runs):.2%}**" for stage in ("matched", "trained")
                ]
                lines.append(f"| {' | '.join(cells)} |")
    page = "\n".join([*lines, ""])
    Path(__file__).with_suffix(".md").write_text(page)
    print(page)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("step", choices=["run", "table"])
    parser.add_argument("--network", default="resnet20_cifar", choices=["resnet20_cifar", "tf_efficientnet_lite0"])
    parser.add_argument("--output", type=Path, default=Path("outputs/criteria"))
    parser.add_argument("--seeds", type=int, nargs="*", default=list(SEEDS))
    parser.add_argument("--budgets", type=float, nargs="*", default=list(BUDGETS))
    parser.add_argument("--criteria", nargs="*", default=list(CRITERIA), choices=CRITERIA)
    told = parser.parse_args()
    if told.step == "run":
        run(told.network, told.output, told.seeds, told.budgets, told.criteria)
    else:
        table(told.output)
