"""Three ways to choose a sub-net at half the MACs, each given the same time, then the same fine-tuning.

    python benchmarks/search_vs_peers.py search --arm paper --model resnet20_cifar --minutes 5 --weights F --data DIR
    python benchmarks/search_vs_peers.py finetune --arm paper --model resnet20_cifar --lr 0.05 --data DIR
    python benchmarks/search_vs_peers.py speed --arm paper          # MobileNetV1 at 224 px, synthetic JPEGs
    python benchmarks/search_vs_peers.py table

Arms: `paper` (EagleEye's procedure on Torch-Pruning), `fastnas` (NVIDIA ModelOpt), `ours`. Every step keeps its result
in a JSON file in `--output` and is skipped where that stands. Peers: `pip install eagleeye-hf[benchmarks]`.

`paper` and `fastnas` run in float32, as their users do. Torch-Pruning and ModelOpt can't follow the zero-padded
shortcuts of the CIFAR ResNets (Torch-Pruning ties the wrong channels, ModelOpt leaves the stages whole), so both prune
the inner widths of the blocks only; `paper` draws ratios in [0, 0.95], where its chance to meet the budget is best.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.cifar_tensors import NUM_TRAIN, batches, finetune, load_tensors, test_accuracy
from benchmarks.peers import fastnas_search, paper_search
from benchmarks.speed_224 import measure_speed
from eagleeye_hf import AdaptiveBNScore, SearchConfig, count_cost, load_model, recalibrate_bn, run_search, trace_model

ARMS = ("paper", "fastnas", "ours")
MACS, TOLERANCE = 0.5, 0.005
SEEDS, EPOCHS = (0, 1), 3


def search_ours(model: nn.Module, arguments: argparse.Namespace, pool: tuple, folder: Path) -> tuple[nn.Module, dict]:
    """Evolution under adaptive BatchNorm; 1,024 calibration and 2,048 holdout images, in stages."""
    started = time.perf_counter()
    graph = trace_model(model)
    calibration, holdout = batches(pool[0][:1024], pool[1][:1024]), batches(pool[0][1024:3072], pool[1][1024:3072])
    score = AdaptiveBNScore(model, graph, calibration, holdout)
    config = SearchConfig(macs=MACS, tolerance=TOLERANCE, candidates=None, minutes=arguments.minutes, matched=False)
    result = run_search(score, graph, config, output=folder, fingerprint=score.fingerprint())
    best = result.best
    chosen = recalibrate_bn(score.build(best.strategy, compensate=True), calibration)
    seconds = time.perf_counter() - started
    facts = {"candidates": len(result.candidates), "seconds": seconds, "holdout_top1": best.score.reported}
    return chosen, facts | {"origin": best.origin, "format": str(score.format)}


def run_step(arguments: argparse.Namespace) -> None:
    folder = arguments.output / f"{arguments.model}_{arguments.arm}"
    folder.mkdir(parents=True, exist_ok=True)
    if arguments.step == "search":
        results = {"search.json": lambda: search(arguments, folder)}
    else:
        seeds = SEEDS if arguments.seed is None else (arguments.seed,)
        names = {seed: f"finetuned_{arguments.lr:g}_{seed}.json" for seed in seeds}
        results = {names[seed]: partial(finetune_choice, arguments, folder, seed) for seed in seeds}
    for name, produce in results.items():
        if not (folder / name).exists():
            (folder / name).write_text(json.dumps(produce(), indent=1))
        print(name, (folder / name).read_text())


def search(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    model = load_model(arguments.model, str(arguments.weights)).eval()
    images, labels = load_tensors(arguments.data, "train", arguments.output)
    pool = images[NUM_TRAIN:], labels[NUM_TRAIN:]
    graph = trace_model(model)
    full = count_cost(graph, graph.widths)
    if arguments.arm == "ours":
        chosen, facts = search_ours(model, arguments, pool, folder)
    elif arguments.arm == "paper":
        chosen, facts = paper_search(model, full.macs, MACS, TOLERANCE, arguments.minutes, arguments.data, NUM_TRAIN)
    else:
        chosen, facts = fastnas_search(model, MACS, arguments.minutes, pool)
    thin = trace_model(chosen, graph.input_size)
    cost = count_cost(thin, thin.widths)
    facts |= {"macs": cost.macs / full.macs, "params": cost.params / full.params, "minutes_given": arguments.minutes}
    facts["threads"] = torch.get_num_threads()
    torch.save(chosen, folder / "choice.pt")
    return facts | {"candidates_per_hour": facts["candidates"] / facts["seconds"] * 3600}


def finetune_choice(arguments: argparse.Namespace, folder: Path, seed: int) -> dict[str, float]:
    images, labels = load_tensors(arguments.data, "train", arguments.output)
    test_images, test_labels = load_tensors(arguments.data, "test", arguments.output)
    model = copy.deepcopy(torch.load(folder / "choice.pt", weights_only=False))
    before = test_accuracy(model, test_images, test_labels)
    seconds = finetune(model, images[:NUM_TRAIN], labels[:NUM_TRAIN], EPOCHS, seed, arguments.lr)
    top1 = test_accuracy(model, test_images, test_labels)
    return {"lr": arguments.lr, "top1": top1, "before": before, "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("search", "finetune", "speed", "table"))
    parser.add_argument("--arm", choices=ARMS)
    parser.add_argument("--model", default="resnet20_cifar")
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--lr", type=float, default=0.02, help="highest learning rate of fine-tuning")
    parser.add_argument("--seed", type=int, choices=SEEDS, help="fine-tune with this one only")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--output", type=Path, default=Path("outputs/search_vs_peers"))
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    if arguments.step == "table":
        from benchmarks.peers_table import write_table

        write_table(arguments.output, Path(__file__).with_suffix(".md"), Path(__file__).with_suffix(".png"))
    elif arguments.step == "speed":
        measure_speed(arguments.arm, arguments.output)
    else:
        run_step(arguments)


if __name__ == "__main__":
    main()
