"""What matching the full network's layers gives, without labels and before fine-tuning.

    python -m benchmarks.matching run --task cifar10 --weights FILE --data DIR --seed 0
    python -m benchmarks.matching table

Takes the choices that `latency_vs_peers.py search --arm ours` and `ours_same` keep in its folder, matches them, and
trains them as that benchmark trains all choices; its own results are those without matching. Results stay in --output.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from benchmarks import cifar_tensors as cifar
from benchmarks import imagenette_tensors as imagenette
from benchmarks.latency_vs_peers import CANDIDATES, CONFIG, HALF, TITLES, Task
from eagleeye_hf import (
    AdaptiveBNScore,
    MatchConfig,
    SearchConfig,
    match_teacher,
    recalibrate_bn,
    run_search,
    trace_model,
)
from eagleeye_hf.data.batches import Portion, count_steps, plan_epoch
from eagleeye_hf.networks.running import Batch

ARMS = {"ours": "`latency=0.5`", "ours_same": "at the time that Torch-Pruning reaches"}


class TensorImages:
    """Training images that are tensors already, cropped and mirrored batch by batch; without labels."""

    exact_steps, name = True, "tensors"

    def __init__(self, augment: Callable[[Tensor, torch.Generator], Tensor], images: Tensor, seed: int) -> None:
        self.augment, self.images, self.seed = augment, images, seed

    def count(self, accelerator: Accelerator | None = None) -> int:
        return len(self.images)

    def count_steps(self, batch_size: int) -> int:
        return count_steps(self.count(), batch_size)

    def cached_batches(self, *_: object) -> list[Batch]:
        raise NotImplementedError

    def seen_as(self, other: object) -> TensorImages:
        return self

    def epoch_batches(
        self, epoch: int, portion: Portion, num_workers: int = 0, device: torch.device | None = None
    ) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(1000 * self.seed + epoch)
        for chosen in plan_epoch(self.count(), 1000 * self.seed + epoch, portion):
            yield (
                self.augment(self.images[torch.as_tensor(chosen)], generator),
                torch.zeros(len(chosen), dtype=torch.long),
            )


def run(arguments: argparse.Namespace) -> None:
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    torch.set_num_threads(1)
    task = Task(arguments)
    place = arguments.results / f"{task.name}_{arguments.arm}_{arguments.seed}.json"
    model = task.model()
    graph = trace_model(model, task.size)
    calibration, holdout = task.held_out()
    score = AdaptiveBNScore(model, graph, calibration, holdout, compensate=True, latency=CONFIG)
    bound = HALF
    if arguments.arm == "ours_same":
        bound = json.loads((arguments.output / f"{task.name}_torch_pruning" / "search.json").read_text())["time"]
    config = SearchConfig(latency=bound, candidates=CANDIDATES[task.name], max_ratio=0.85)
    folder = arguments.output / f"{task.name}_{arguments.arm}"
    best = run_search(score, graph, config, output=folder, fingerprint=score.fingerprint()).best
    keep = score.choose_channels(best.strategy)
    thin = recalibrate_bn(score.build(best.strategy), calibration)
    told = {"compensated": task.test(copy.deepcopy(thin))}
    print(told, flush=True)
    augment = cifar.augment if task.name == "cifar10" else imagenette.augment
    images = TensorImages(augment, _unlabelled(task), arguments.seed)
    started = time.process_time()
    matched = match_teacher(thin, model, graph, keep, images, MatchConfig(), accelerator=accelerator)
    told |= {"seconds": time.process_time() - started}
    matched = _seen(matched, images)
    told |= {"matched": task.test(copy.deepcopy(matched))}
    print(told, flush=True)
    place.write_text(json.dumps(told, indent=1))
    started = time.process_time()
    task.train(matched, arguments.seed, 2)
    told |= {"trained": task.test(matched), "training_seconds": time.process_time() - started}
    print(told, flush=True)
    place.write_text(json.dumps(told, indent=1))


def _unlabelled(task: Task) -> Tensor:
    if task.name == "cifar10":
        return cifar.load_tensors(task.data, "train", task.cache)[0][: cifar.NUM_TRAIN]
    pixels = imagenette.PIXELS + imagenette.MARGIN
    return imagenette.load_photographs(task.data, "train", task.cache, pixels)[0][: -imagenette.NUM_HELD_OUT]


def _seen(model: nn.Module, images: TensorImages) -> nn.Module:
    """Statistics from 2,048 images, cropped as in training."""
    batches = (batch for batch, _ in images.epoch_batches(999, Portion(batch_size=64)))
    return recalibrate_bn(model, [next(batches) for _ in range(32)])


def write_table(results: Path, peers: Path, page: Path) -> None:
    lines = [
        "# Matching the full network's layers, without labels",
        "",
        "Made by `matching.py` with the choices of `latency_vs_peers.py`: compensated; matched for the default "
        "number of steps on unlabelled training images (one core, bfloat16); then, or without it, trained for two "
        "epochs on labels. Test top-1, by seed.",
        "",
        "| network | choice | full | compensated | **matched** | seconds | 2 epochs | **matched, then 2 epochs** |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for task, title in TITLES.items():
        for arm, what in ARMS.items():
            rows = [json.loads(file.read_text()) for file in sorted(results.glob(f"{task}_{arm}_[0-9].json"))]
            rows = [row for row in rows if "trained" in row]
            if not rows:
                continue
            folder = peers / f"{task}_{arm}"
            without = [json.loads(file.read_text())["top1"] for file in sorted(folder.glob("trained_*.json"))]
            full = json.loads((folder / "search.json").read_text())["full_top1"]
            lines.append(
                f"| {title} | {what} | {full:.2%} | {rows[0]['compensated']:.2%} | {_several(rows, 'matched')} "
                f"| {statistics.mean(row['seconds'] for row in rows):.0f} | {', '.join(f'{v:.2%}' for v in without)} "
                f"| {_several(rows, 'trained')} |"
            )
    page.write_text("\n".join(lines) + "\n")
    print(page.read_text())


def _several(rows: list[dict], key: str) -> str:
    return ", ".join(f"**{row[key]:.2%}**" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("run", "table"))
    parser.add_argument("--task", default="cifar10", choices=TITLES)
    parser.add_argument("--arm", default="ours", choices=ARMS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--output", type=Path, default=Path("outputs/latency_vs_peers"), help="that benchmark's folder")
    parser.add_argument("--results", type=Path, default=Path("outputs/matching"))
    arguments = parser.parse_args()
    arguments.results.mkdir(parents=True, exist_ok=True)
    if arguments.step == "table":
        write_table(arguments.results, arguments.output, Path(__file__).with_suffix(".md"))
    else:
        run(arguments)


if __name__ == "__main__":
    main()
