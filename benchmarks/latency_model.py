"""How well a latency model predicts and ranks sub-nets that it never saw, at half the MACs.

    python benchmarks/latency_model.py --runtime onnxruntime --model resnet50     # one page part, kept in --output
    python benchmarks/latency_model.py table

The networks have random weights, at 224 px, on one thread. Twenty sub-nets are drawn at half the MACs with another seed
than those that the model was fitted to, and measured twice, each time in random turns beside the full network. The
noise is how far the two measurements of a sub-net differ; the rank correlation between them is what a perfect model
would reach.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import timm
import torch
from scipy.stats import spearmanr

from eagleeye_hf import Budget, sample_strategies, trace_model
from eagleeye_hf.pruning.importance import Importance
from eagleeye_hf.runtimes import profiling
from eagleeye_hf.runtimes.alignment import measure_alignment
from eagleeye_hf.runtimes.config import LatencyConfig
from eagleeye_hf.runtimes.latency import draw_images, take_turns
from eagleeye_hf.runtimes.runtime import TITLES, find_runtime
from eagleeye_hf.strategies.strategy import aligned_divisors

MODELS = ("mobilenetv1_100", "resnet50", "efficientnet_b0", "mobilenetv3_large_100")
NUM, TOGETHER, SEED = 20, 5, 123


def measure(name: str, config: LatencyConfig, cache: Path, divisor: int | None, rounds: int) -> dict[str, float | str]:
    """Fit a model of milliseconds to one network, and compare it with measurements."""
    runtime = find_runtime(config)
    model = timm.create_model(name).eval()
    graph = trace_model(model, (3, 224, 224))
    importance = Importance(model, graph)
    alignment = divisor or measure_alignment(runtime)
    divisors = aligned_divisors(graph, alignment) if divisor is None else divisor
    profiling.cache_folder = lambda: cache / "none"  # type: ignore[assignment]  # nothing of before
    for file in (cache / "none" / "latency").glob("*"):
        file.unlink()
    fitted = profiling.fit_latency(model, graph, importance, runtime, divisor=divisors)
    strategies = sample_strategies(graph, Budget(macs=0.5), NUM + 1, seed=SEED, divisor=divisors)[1:]
    load = runtime.load_thin(model, graph, draw_images(runtime, graph.input_size))
    full = load({})
    keeps = [importance.choose(strategy.widths) for strategy in strategies]

    def measured(order: list[int]) -> np.ndarray:
        found = np.zeros(NUM)
        for start in range(0, NUM, TOGETHER):
            chosen = order[start : start + TOGETHER]
            turns = take_turns([full, *(load(keeps[i]) for i in chosen)], rounds)
            found[chosen] = [min(times) / min(turns[0]) for times in turns[1:]]
        return found

    first, second = measured(list(range(NUM))), measured(list(range(NUM))[::-1])
    truth = (first + second) / 2
    predicted = fitted.predict(graph, np.array([s.widths for s in strategies])) / fitted.full_ms
    return {
        "model": name,
        "place": str(runtime.place),
        "runtime": config.runtime,
        "precision": runtime.place.precision,
        "divisor": alignment,
        "seconds": fitted.seconds,
        "full_ms": fitted.full_ms,
        "mean": float(truth.mean()),
        "spread": float(truth.std() / truth.mean()),
        "noise": float(np.mean(np.abs(first / second - 1))),
        "repeat_rank": float(spearmanr(first, second).statistic),
        "error": float(np.mean(np.abs(predicted / truth - 1))),
        "rank": float(spearmanr(predicted, truth).statistic),
    }


def write_table(folder: Path, page: Path) -> None:
    rows = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    order = {name: place for place, name in enumerate(MODELS)}
    rows.sort(key=lambda row: (row["runtime"], row["precision"], row["divisor"], order.get(row["model"], 9)))
    lines = [
        "# The latency model beside measurements",
        "",
        "Made by `latency_model.py`: 20 sub-nets at half the MACs that the model was not fitted to, 224 px, one image, "
        "one thread. `left`: their measured milliseconds, of the full network's; `spread`: standard deviation of these "
        "among the 20; `noise`: mean difference of two measurements of one sub-net; `repeated`: rank correlation "
        "(Spearman) of the two; `error` and `rank`: of the model, against the mean of the two.",
        "",
        "| runtime | network | widths | fitted in | full | left | spread | noise | repeated | **error** | **rank** |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        title = TITLES[row["runtime"]] + (", int8" if row["precision"] == "int8" else "")
        lines.append(
            f"| {title} | {row['model']} | x {row['divisor']} | {row['seconds']:.0f} s | {row['full_ms']:.1f} ms "
            f"| {row['mean']:.0%} | {row['spread']:.1%} | {row['noise']:.1%} | {row['repeat_rank']:.2f} "
            f"| **{row['error']:.1%}** | **{row['rank']:.2f}** |"
        )
    page.write_text("\n".join(lines) + "\n")
    print(page.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", nargs="?", default="measure", choices=("measure", "table"))
    parser.add_argument("--model", nargs="+", default=MODELS)
    parser.add_argument("--runtime", default="onnxruntime", choices=("torch", "onnxruntime", "openvino", "compile"))
    parser.add_argument("--int8", action="store_true")
    parser.add_argument("--divisor", type=int, help="multiple of channels, instead of the runtime's own")
    parser.add_argument("--rounds", type=int, default=40, help="turns of each of the two measurements")
    parser.add_argument("--output", type=Path, default=Path("outputs/latency_model"))
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    if arguments.step == "table":
        write_table(arguments.output, Path(__file__).with_suffix(".md"))
        return
    torch.set_num_threads(1)
    config = LatencyConfig(runtime=arguments.runtime, threads=1, int8=arguments.int8)
    for name in arguments.model:
        found = measure(name, config, arguments.output, arguments.divisor, arguments.rounds)
        print(found, flush=True)
        ending = f"{arguments.runtime}{'_int8' if arguments.int8 else ''}_{found['divisor']}"
        (arguments.output / f"{name}_{ending}.json").write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
