"""How much of what fine-tuning gives back comes from matching layers without labels, in one epoch's time at most.

    python -m benchmarks.recovery run --network resnet20_cifar        # about 15 minutes of one core a seed
    python -m benchmarks.recovery table                               # writes recovery.md

Needs ../shared. Half of the MACs by width, the best of 64 candidates, repaired and with statistics recomputed, per
criterion of which channels stay. From the repaired network on: matched without labels, for as many steps of 64 images
as an epoch has, at most 600; or trained on labels and the full network's outputs for five epochs. ResNet-20 is matched
on 2,048 images alone. Test top-1; none of it chose anything. Results stay in --output; a run goes on where it was
stopped.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from accelerate import Accelerator

from benchmarks.matching import TensorImages
from benchmarks.training_choices import BATCH, RATE, Run, Task, open_task, score_network
from eagleeye_hf import (
    AdaptiveBNScore,
    MatchConfig,
    SearchConfig,
    match_teacher,
    recalibrate_bn,
    run_search,
    trace_model,
)
from eagleeye_hf.pruning.config import Criterion

NETWORKS = {"resnet20_cifar": 2_048, "resnet56_cifar": None, "tf_efficientnet_lite0": None}
"""And the images that each is matched on, where not on all that there are for training."""
CRITERIA: Sequence[Criterion] = ("l1", "reconstruction")
SEEDS, PARTS = (0, 1), ("matched", "trained")
EPOCHS, MOST_STEPS, CANDIDATES = 5, 600, 64


def try_network(
    task: Task, num: int | None, criterion: Criterion, seed: int, folder: Path, parts: Sequence[str]
) -> None:
    """Writes top-1 on holdout and test images, and processor seconds, at each step."""
    file = folder / "found.json"
    found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    if all(part in found for part in parts):
        return
    calibration = [(task.normalize(part), torch.zeros(len(part))) for part in task.calibration.split(128)]
    holdout = [(task.normalize(x), y) for x, y in zip(*(part.split(128) for part in task.holdout), strict=True)]
    graph = trace_model(task.full, tuple(calibration[0][0].shape[1:]))
    score = AdaptiveBNScore(task.full, graph, calibration, holdout, criterion=criterion, compensate=True)
    config = SearchConfig(macs=0.5, candidates=CANDIDATES, matched=False, dimensions=("width",), divisor=1)
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    best = run_search(score, graph, config, seed=seed, output=folder, fingerprint=score.fingerprint()).best
    thin = recalibrate_bn(score.build(best.strategy), calibration)
    steps, started = min(MOST_STEPS, len(task.train[0]) // BATCH), time.process_time()
    images = TensorImages(task.augment, task.train[0][:num], seed)
    if "matched" in parts and "matched" not in found:
        keep = score.choose_channels(best.strategy)
        how = MatchConfig(match_steps=steps)
        matched = match_teacher(copy.deepcopy(thin), task.full, graph, keep, images, how, accelerator=accelerator)
        found |= {"matching_seconds": time.process_time() - started, "images": len(images.images), "steps": steps}
        found |= {"full": score_network(task, task.full, recompute=False), "compensated": score_network(task, thin)}
        found["matched"] = score_network(task, matched)
        file.write_text(json.dumps(found, indent=1))
        print(task.name, criterion, seed, found["compensated"], found["matched"], flush=True)
    if "trained" not in parts or "trained" in found:
        return
    run, seconds, started = Run(task, thin, RATE, "logits", seed, EPOCHS), list[float](), time.process_time()
    for _ in run.train_epochs():
        seconds.append(time.process_time() - started)
    found |= {"trained": score_network(task, run.network), "epoch_seconds": seconds[-1] / EPOCHS}
    file.write_text(json.dumps(found, indent=1))


def run(name: str, output: Path, seeds: Sequence[int], criteria: Sequence[Criterion], parts: Sequence[str]) -> None:
    torch.set_num_threads(1)
    task = open_task(name, output, whole=True)
    for seed in seeds:
        for criterion in criteria:
            folder = output / name / f"{criterion}-{seed}"
            folder.mkdir(parents=True, exist_ok=True)
            try_network(task, NETWORKS[name], criterion, seed, folder, parts)


def table(output: Path) -> None:
    lines = ["# What matching gives back", "", (__doc__ or "").split("\n\n")[2].replace("\n", " "), ""]
    lines += [
        "| network | criterion | seeds | full | compensated | matched, no labels | its images | its time, in epochs |"
    ]
    lines[-1] += f" trained, {EPOCHS} epochs | given back by matching |"
    lines += ["|---|---|---:|---:|---:|---:|---:|---:|---:|---:|"]
    for name in NETWORKS:
        for criterion in CRITERIA:
            files = sorted((output / name).glob(f"{criterion}-*/found.json"))
            rows = [json.loads(file.read_text()) for file in files]
            if rows:
                lines.append(_row(name, criterion, rows))
    page = "\n".join([*lines, ""])
    Path(__file__).with_suffix(".md").write_text(page)
    print(page)


def _row(name: str, criterion: str, rows: Sequence[dict[str, Any]]) -> str:
    """A line; what was not trained is left open."""
    whole = [row for row in rows if "trained" in row]
    top1 = {step: mean(row[step]["test"] for row in rows) for step in ("full", "compensated", "matched")}
    cells = [name, f"`{criterion}`", str(len(rows)), f"{top1['full']:.2%}", f"{top1['compensated']:.2%}"]
    cells += [f"**{top1['matched']:.2%}**", f"{rows[0]['images']:,}"]
    if not whole:
        return f"| {' | '.join(cells)} | | | |"
    start, matched, trained = (
        mean(row[step]["test"] for row in whole) for step in ("compensated", "matched", "trained")
    )
    seconds = mean(row["matching_seconds"] / row["epoch_seconds"] for row in whole)
    return f"| {' | '.join(cells)} | {seconds:.2f} | {trained:.2%} | {(matched - start) / (trained - start):.0%} |"


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("step", choices=["run", "table"])
    parser.add_argument("--network", default="resnet20_cifar", choices=list(NETWORKS))
    parser.add_argument("--output", type=Path, default=Path("outputs/recovery"))
    parser.add_argument("--seeds", type=int, nargs="*", default=list(SEEDS))
    parser.add_argument("--criteria", nargs="*", default=list(CRITERIA), choices=CRITERIA)
    parser.add_argument("--parts", nargs="*", default=list(PARTS), choices=PARTS)
    told = parser.parse_args()
    if told.step == "run":
        run(told.network, told.output, told.seeds, told.criteria, told.parts)
    else:
        table(told.output)
