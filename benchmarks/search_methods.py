"""What each way of searching finds with the same number of candidates; ResNet-20 on CIFAR-10.

python -m benchmarks.search_methods --weights FILE --data DIR
"""

from __future__ import annotations

import argparse
from pathlib import Path

from accelerate import Accelerator

from benchmarks.cifar_tensors import NUM_TRAIN, batches, load_tensors
from eagleeye_hf import AdaptiveBNScore, SearchConfig, load_model, run_search, trace_model

CANDIDATES, SEEDS, BUDGETS = 150, (0,), (0.5,)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path("outputs/search_methods"))
    arguments = parser.parse_args()
    model = load_model("resnet20_cifar", str(arguments.weights)).eval()
    graph = trace_model(model)
    images, labels = load_tensors(arguments.data, "train", arguments.output)
    pool = images[NUM_TRAIN:], labels[NUM_TRAIN:]
    score = AdaptiveBNScore(
        model, graph, batches(pool[0][:1024], pool[1][:1024]), batches(pool[0][1024:3072], pool[1][1024:3072])
    )
    lines = [
        "# Methods of search",
        "",
        f"Made by `search_methods.py`: ResNet-20 on CIFAR-10, {CANDIDATES} candidates per budget (one for `uniform`, "
        "two for `global`), 2,048 holdout images. Loss and top-1 of the chosen candidate after adaptive BatchNorm, "
        "without training.",
        "",
        "| method | seed | " + " | ".join(f"loss at {macs:.0%} MACs | top-1" for macs in BUDGETS) + " |",
        "|---|---:|" + "---:|---:|" * len(BUDGETS),
    ]
    for method in ("uniform", "global", "random", "evolution"):
        for seed in SEEDS if method in ("random", "evolution") else SEEDS[:1]:
            config = SearchConfig(macs=list(BUDGETS), method=method, candidates=CANDIDATES, matched=False)
            folder = arguments.output / f"{method}_{seed}"
            result = run_search(score, graph, config, seed=seed, output=folder, accelerator=Accelerator())
            best = [result.best_of(number) for number in range(len(BUDGETS))]
            cells = " | ".join(f"{chosen.score.loss:.3f} | {chosen.score.reported:.2%}" for chosen in best)
            lines.append(f"| {method} | {seed} | {cells} |")
            print(lines[-1], flush=True)
    Path(__file__).with_suffix(".md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
