"""ResNet-56 on CIFAR-10 at half the MACs: what pruning costs when every network gets the same training.

    python benchmarks/cifar10_resnet56.py --dataset FOLDER --weights FILE --epochs 8

Arms: the unpruned network, EagleEye's winner (compensated, as recipes do) with and without distillation, and uniform
pruning by L1. Each arm writes
`OUTPUT/ARM.json`; `--arms` chooses some, so that several processes can share the work; a killed run goes on when
started again. With all results there, `--table` writes them as Markdown.
"""

import argparse
import json
import os
import time
from pathlib import Path

import torch
from accelerate import Accelerator

from eagleeye_hf import (
    AdaptiveBNScore,
    FinetuneConfig,
    SearchConfig,
    count_cost,
    evaluate_model,
    finetune_model,
    load_model,
    open_splits,
    recalibrate_bn,
    run_search,
    trace_model,
)

ARMS = {
    "unpruned": "unpruned",
    "winner": "EagleEye, distilled",
    "winner-labels": "EagleEye, labels only",
    "uniform": "uniform L1, distilled",
    "uniform-labels": "uniform L1, labels only",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--model", default="resnet56_cifar")
    parser.add_argument("--arms", nargs="*", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--candidates", type=int, default=100)
    parser.add_argument("--output", type=Path, default=Path("outputs/cifar10_resnet56"))
    parser.add_argument("--table", type=Path, help="write the results that are there into this file, and do no more")
    options = parser.parse_args()
    if options.table:
        options.table.write_text(table(options.output))
        return
    accelerator = Accelerator(mixed_precision="bf16")
    model = load_model(options.model, options.weights).to(accelerator.device)
    data = open_splits(options.dataset, like=model, calibration_images=1024, holdout_images=2048)
    graph = trace_model(model)
    score = AdaptiveBNScore(model, graph, data.calibration.cached_batches(), data.holdout.cached_batches())

    search = SearchConfig(macs=0.5, candidates=options.candidates)
    options.output.mkdir(parents=True, exist_ok=True)
    result = run_search(score, graph, search, output=options.output, fingerprint=score.fingerprint())
    uniform = next(c for c in result.candidates if c.strategy.origin == "uniform")
    widths = {"unpruned": graph.widths, "winner": result.best.strategy.widths, "uniform": uniform.strategy.widths}
    for arm in options.arms:
        place = options.output / f"{arm}.json"
        if place.exists():
            continue
        kept = widths[arm.split("-")[0]]
        network = score.build(kept, compensate=arm.startswith("winner"))
        if arm != "unpruned":
            recalibrate_bn(network, data.calibration.cached_batches())
        before = evaluate_model(network, data.test.batches())
        distilled = arm in ("winner", "uniform")
        curve, started = [], time.perf_counter()
        trained = finetune_model(
            network,
            data.train,
            FinetuneConfig(epochs=options.epochs, batch_size=options.batch_size, lr=options.lr, save_steps=100),
            teacher=model if distilled else None,
            holdout=data.holdout,
            calibration=data.calibration,
            accelerator=accelerator,
            checkpoint=options.output / f"training-{arm}",
            on_epoch=curve.append,
        )
        facts = {
            "arm": arm,
            "macs": count_cost(graph, kept).macs / 1e6,
            "params": count_cost(graph, kept).params / 1e3,
            "before": before.to_dict(),
            "test": evaluate_model(trained, data.test.batches()).to_dict(),
            "seconds": time.perf_counter() - started,
            "settings": {key: str(value) for key, value in vars(options).items()},
            "curve": [vars(record) for record in curve],
        }
        place.with_suffix(".tmp").write_text(json.dumps(facts, indent=1))
        os.replace(place.with_suffix(".tmp"), place)
        print(f"{arm}: {facts['test']['top1']:.2%}")


def table(folder: Path) -> str:
    """The results as Markdown."""
    found = {arm: json.loads((folder / f"{arm}.json").read_text()) for arm in ARMS if (folder / f"{arm}.json").exists()}
    any_settings = next(iter(found.values()))["settings"]
    lines = [
        f"{any_settings['epochs']} epochs, batch {any_settings['batch_size']}, learning rate {any_settings['lr']}, "
        f"cosine; adaptive search over {any_settings['candidates']} candidates; 10,000 test images, used once. "
        f"Made by `benchmarks/cifar10_resnet56.py` on {torch.get_num_threads()} threads of a CPU in bfloat16.",
        "",
        "| network | MACs | parameters | top-1 before training | top-1 after training | to the unpruned one |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    base = found.get("unpruned", {}).get("test", {}).get("top1")
    for arm, facts in found.items():
        gap = f"{100 * (facts['test']['top1'] - base):+.2f}" if base is not None and arm != "unpruned" else ""
        lines.append(
            f"| {ARMS[arm]} | {facts['macs']:.1f} M | {facts['params']:.0f} k | {facts['before']['top1']:.2%} "
            f"| {facts['test']['top1']:.2%} | {gap} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
