"""ResNet-56 on CIFAR-10 at half the MACs: what pruning costs when every network gets the same training.

    accelerate launch --mixed_precision no recipes/cifar10_resnet56.py --weights FILE --dataset FOLDER \\
        --epochs 10 --lr 0.02 --candidates 600 --output outputs/cifar10_resnet56
    accelerate launch --mixed_precision no benchmarks/cifar10_resnet56.py --weights FILE --dataset FOLDER

The recipe makes the first arm, EagleEye's winner (compensated and distilled). This script trains the others alike: the
unpruned network, the same winner without distillation, and uniform pruning by L1. Each arm writes `OUTPUT/ARM.json`;
`--arms` chooses some, so that several processes can share the work; a killed run goes on when started again. With all
results there, `--table` writes them as Markdown.
"""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from eagleeye_hf import (
    AdaptiveBNScore,
    FinetuneConfig,
    SearchConfig,
    Strategy,
    count_cost,
    evaluate_model,
    finetune_model,
    load_model,
    open_splits,
    recalibrate_bn,
    run_search,
    trace_model,
)
from eagleeye_hf.strategies.files import read_strategy

WINNER = "EagleEye, distilled (the recipe)"
TRAINING = ("epochs", "lr", "batch_size", "distillation", "temperature")
ARMS = {"unpruned": "unpruned", "winner-labels": "EagleEye, labels only", "uniform": "uniform L1, distilled"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset")
    parser.add_argument("--weights")
    parser.add_argument("--model", default="resnet56_cifar")
    parser.add_argument("--winner", type=Path, default=Path("outputs/cifar10_resnet56"), help="the recipe's folder")
    parser.add_argument("--arms", nargs="*", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--distillation", type=float, default=0.9)
    parser.add_argument("--temperature", type=float, default=4.0)
    parser.add_argument("--compile", action="store_true", help="compile the networks with torch.compile")
    parser.add_argument("--output", type=Path, default=Path("outputs/cifar10_resnet56-arms"))
    parser.add_argument("--table", type=Path, help="write the results that are there into this file, and do no more")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    if options.table:
        options.table.write_text(table(options.winner, options.output))
        return
    if not options.dataset or not options.weights:
        parser.error("training needs --dataset and --weights")
    for arm in options.arms:
        place = options.output / f"{arm}.json"
        if not place.exists():
            facts = train_arm(arm, options)
            place.with_suffix(".tmp").write_text(json.dumps(facts, indent=1))
            os.replace(place.with_suffix(".tmp"), place)
            print(f"{arm}: {facts['test']['top1']:.2%}")


def train_arm(arm: str, options: argparse.Namespace) -> dict[str, object]:
    accelerator, training = Accelerator(), {key: getattr(options, key) for key in TRAINING}
    model = load_model(options.model, options.weights).to(accelerator.device).eval()
    data = open_splits(options.dataset, like=model, calibration_images=1024, holdout_images=2048)
    graph = trace_model(model)
    calibration = data.calibration.cached_batches()
    how: dict[str, Any] = {"criterion": "l1"} if arm == "uniform" else {}
    score = AdaptiveBNScore(model, graph, calibration, data.holdout.cached_batches(), **how)
    strategy = Strategy(graph.widths)
    if arm == "uniform":
        strategy = run_search(score, graph, SearchConfig(macs=0.5, method="uniform")).best.strategy
    elif arm == "winner-labels":
        strategy = read_strategy(graph, str(options.winner / "strategy.json"))
    network = score.build(strategy, compensate=arm == "winner-labels")
    if arm != "unpruned":
        recalibrate_bn(network, calibration)
    before, started, curve = evaluate_model(network, data.test.batches()), time.perf_counter(), []
    trained = finetune_model(
        network,
        data.train,
        FinetuneConfig(**training, compile=options.compile, save_steps=100),
        teacher=model if arm == "uniform" else None,
        holdout=data.holdout,
        calibration=data.calibration,
        accelerator=accelerator,
        checkpoint=options.output / f"training-{arm}",
        on_epoch=curve.append,
    )
    return {
        "macs": count_cost(graph, strategy).macs,
        "params": count_cost(graph, strategy).params,
        "before": before.to_dict(),
        "test": evaluate_model(trained, data.test.batches()).to_dict(),
        "settings": training,
        "precision": accelerator.mixed_precision.replace("no", "float32"),
        "seconds": time.perf_counter() - started,
        "curve": [vars(record) for record in curve],
    }


def read_winner(folder: Path) -> dict[str, object]:
    """The recipe's result, as `train_arm` tells its own."""
    told = json.loads((folder / "config.json").read_text())["eagleeye"]
    cost = json.loads((folder / "strategy.json").read_text())
    metrics, config = told["metrics"], told["config"]
    return {
        "macs": cost["macs"],
        "params": cost["params"],
        "before": metrics["compensated"],
        "test": metrics["fine-tuned"],
        "settings": {key: config[key] for key in TRAINING},
        "candidates": config["candidates"],
    }


def table(winner: Path, folder: Path) -> str:
    """The results as Markdown."""
    found = {WINNER: read_winner(winner)}
    found |= {name: json.loads((folder / f"{arm}.json").read_text()) for arm, name in ARMS.items()}
    settings = found[WINNER]["settings"]
    different = [name for name, facts in found.items() if facts["settings"] != settings]
    if different:
        raise SystemExit(f"trained otherwise than the recipe ({settings}): {', '.join(different)}")
    lines = [
        f"{settings['epochs']} epochs, batch {settings['batch_size']}, highest learning rate {settings['lr']}, cosine, "
        f"{found['unpruned']['precision']}; distillation with weight {settings['distillation']} at temperature "
        f"{settings['temperature']:g}; a search over {found[WINNER]['candidates']} candidates; 10,000 test images, "
        "used once. Made by `recipes/cifar10_resnet56.py` and `benchmarks/cifar10_resnet56.py`, PyTorch "
        f"{torch.__version__}.",
        "",
        "| network | MACs | parameters | top-1 before training | top-1 after training | to the unpruned one |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    base = found["unpruned"]["test"]["top1"]
    for name, facts in found.items():
        gap = "" if name == "unpruned" else f"{100 * (facts['test']['top1'] - base):+.2f}"
        lines.append(
            f"| {name} | {facts['macs'] / 1e6:.1f} M | {facts['params'] / 1e3:.0f} k | {facts['before']['top1']:.2%} "
            f"| {facts['test']['top1']:.2%} | {gap} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
