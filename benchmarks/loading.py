"""How long a pruned checkpoint takes to load, beside the full network from a safetensors file: medians, taking turns.

python benchmarks/loading.py
"""

import statistics
import tempfile
import time
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file

from eagleeye_hf import choose_channels, from_pretrained, save_pretrained, slice_model, trace_model

NETWORKS = ("resnet20_cifar", "mobilenetv1_100", "resnet50", "densenet121", "efficientnet_b0")
ROUNDS = 7


def main() -> None:
    print("| network | full, timm | pruned, from_pretrained | pruned, timm |\n|---|---:|---:|---:|")
    for name in NETWORKS:
        with tempfile.TemporaryDirectory() as folder:
            model = timm.create_model(name)
            weights, pruned = Path(folder) / "full.safetensors", Path(folder) / "pruned"
            save_file(model.state_dict(), weights)
            graph = trace_model(model)
            widths = [
                max(g.step, g.channels // 2 // g.step * g.step) if g.prunable else g.channels for g in graph.groups
            ]
            save_pretrained(slice_model(model, graph, choose_channels(model, graph, widths)), pruned)
            loaders = (
                lambda w=weights, n=name: timm.create_model(n, checkpoint_path=str(w)),
                lambda p=pruned: from_pretrained(p),
                lambda p=pruned: timm.create_model(f"local-dir:{p}", pretrained=True),
            )
            times: list[list[float]] = [[] for _ in loaders]
            for round_number in range(ROUNDS + 1):
                for loader, own in zip(loaders, times, strict=True):
                    started = time.perf_counter()
                    loader()
                    if round_number:
                        own.append(1000 * (time.perf_counter() - started))
        print(f"| {name} | " + " | ".join(f"{statistics.median(own):.0f} ms" for own in times) + " |")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
