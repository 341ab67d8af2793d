"""How long tracing and slicing take, beside Torch-Pruning on the same networks; one thread, medians of turns.

    pip install -e ".[benchmarks]"
    python benchmarks/tracing.py > benchmarks/tracing.md

Torch-Pruning finds its groups in the pruner's constructor and removes channels in `step`; here they are `trace_model`,
and `choose_channels` with `slice_model` (which, unlike `step`, leaves the full model intact).
"""

import copy
import gc
import statistics
import time
import warnings
from collections.abc import Callable

import timm
import torch
import torch_pruning
from torch import nn

from eagleeye_hf import choose_channels, slice_model, trace_model
from eagleeye_hf.strategies.strategy import widths_from_ratios

NETWORKS = ("resnet50", "densenet121", "mobilenetv1_100", "efficientnet_b0", "regnety_032")
TURNS = 15


def timed(function: Callable[[], object]) -> tuple[float, object]:
    gc.collect()  # else one pays for what the other left behind
    started = time.perf_counter()
    result = function()
    return time.perf_counter() - started, result


def ours(model: nn.Module) -> tuple[float, float]:
    tracing, graph = timed(lambda: trace_model(model))
    widths = widths_from_ratios(graph, [0.5] * len(graph.prunable)).tolist()
    slicing, _ = timed(lambda: slice_model(model, graph, choose_channels(model, graph, widths)))
    return tracing, slicing


def peer(model: nn.Module) -> tuple[float, float]:
    model, images = copy.deepcopy(model), torch.randn(1, 3, 224, 224)
    tracing, pruner = timed(
        lambda: torch_pruning.pruner.MagnitudePruner(
            model,
            images,
            importance=torch_pruning.importance.MagnitudeImportance(p=1),
            pruning_ratio=0.5,
            ignored_layers=[model.get_classifier()],
        )
    )
    slicing, _ = timed(pruner.step)
    return tracing, slicing


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    print("Seconds on one thread, median of", TURNS, "turns; Torch-Pruning", torch_pruning.__version__, end="\n\n")
    print("| network | tracing | Torch-Pruning | ratio | slicing | Torch-Pruning | ratio |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for name in NETWORKS:
        model = timm.create_model(name).eval()
        ours(model), peer(model)
        turns = [(*ours(model), *peer(model)) for _ in range(TURNS)]
        trace, cut, peer_trace, peer_cut = (statistics.median(column) for column in zip(*turns, strict=True))
        cells = [trace, peer_trace, peer_trace / trace, cut, peer_cut, peer_cut / cut]
        print(f"| {name} | " + " | ".join(f"{cell:.2f}" for cell in cells) + " |", flush=True)


if __name__ == "__main__":
    main()
