"""How to share a search's images out: what each choice of stages finds in the same time; ResNet-20 on CIFAR-10.

python -m benchmarks.search_stages --weights FILE --data DIR
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import torch

from benchmarks.cifar_tensors import NUM_TRAIN, batches, load_tensors
from eagleeye_hf import (
    AdaptiveBNScore,
    SearchConfig,
    evaluate_model,
    load_model,
    recalibrate_bn,
    run_search,
    trace_model,
)

STAGES = ((1.0,), (0.125, 1.0), (0.0625, 0.25, 1.0))
SEEDS = (0, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=1.5)
    parser.add_argument("--output", type=Path, default=Path("outputs/search_stages"))
    arguments = parser.parse_args()
    model = load_model("resnet20_cifar", str(arguments.weights)).eval()
    graph = trace_model(model)
    images, labels = (part[NUM_TRAIN:] for part in load_tensors(arguments.data, "train", arguments.output))
    calibration, holdout = batches(images[:1024], labels[:1024]), batches(images[1024:3072], labels[1024:3072])
    fresh = batches(images[3072:], labels[3072:])
    score = AdaptiveBNScore(model, graph, calibration, holdout)
    lines = [
        "# Stages of a search",
        "",
        f"Made by `search_stages.py`: ResNet-20 on CIFAR-10 at half the MACs, {arguments.minutes:g} minutes each on "
        f"{torch.get_num_threads()} thread(s), seeds {' and '.join(map(str, SEEDS))}. Parts of 1,024 calibration and "
        "2,048 holdout images; the best tenth goes on to the next stage. Mean loss and top-1 of the chosen candidates "
        "after adaptive BatchNorm, on 6,928 other training images, without training.",
        "",
        "| stages | candidates | loss, per seed | mean loss | mean top-1 |",
        "|---|---:|---:|---:|---:|",
    ]
    for stages in STAGES:
        scored, found = [], []
        for seed in SEEDS:
            config = SearchConfig(macs=0.5, candidates=None, minutes=arguments.minutes, stages=stages, matched=False)
            result = run_search(score, graph, config, seed=seed)
            chosen = recalibrate_bn(score.build(result.best.strategy), calibration)
            scored.append(sum(candidate.scored for candidate in result.candidates))
            found.append(evaluate_model(chosen, fresh))
        losses = [metrics.loss for metrics in found]
        cells = [
            ", ".join(f"{share:g}" for share in stages),
            ", ".join(map(str, scored)),
            ", ".join(f"{loss:.3f}" for loss in losses),
            f"{statistics.mean(losses):.3f}",
            f"{statistics.mean(metrics.top1 for metrics in found):.2%}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
    Path(__file__).with_suffix(".md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
