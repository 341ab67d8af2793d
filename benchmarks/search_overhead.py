"""What scoring a candidate costs beyond the bare forward passes of its sub-net on the same images.

    python -m benchmarks.search_overhead

Bare: the thin network, already built, in eval mode, in the same memory format and precision, over the calibration and
holdout images, without recomputing anything or looking at the outputs. Both in CPU seconds on one thread, in turns, so
that what else runs on the machine matters little. Peak memory is the process's (Linux), above what it held before.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from eagleeye_hf import AdaptiveBNScore, Budget, sample_strategies, trace_model
from eagleeye_hf.evaluation.format import FORMATS, Format, fastest_format, time_formats

CASES = (("resnet20_cifar", 32, 1024, 2048), ("mobilenetv1_100", 224, 128, 256))
"""Network, pixels, calibration and holdout images."""
NUM_CANDIDATES, ROUNDS, BATCH = 3, 3, 128


def main() -> None:
    torch.set_num_threads(1)
    lines = [
        "# Overhead of scoring",
        "",
        "Made by `search_overhead.py`: CPU time per candidate over that of the bare forward passes of its sub-net on "
        "the same images; one thread, medians of turns.",
        "",
        "| network | pixels | images | format | bare, s | score, s | ratio | images, MB | peak, bare | peak, score |",
        "|---|---:|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    speeds = ["", "Images per second of a half-MACs sub-net, by format:", ""]
    speeds += ["| network | " + " | ".join(map(str, FORMATS)) + " |", "|---|" + "---:|" * len(FORMATS)]
    for name, pixels, num_calibration, num_holdout in CASES:
        row, measured = measure_case(name, pixels, num_calibration, num_holdout)
        lines.append(row)
        speeds.append(f"| {name} | " + " | ".join(f"{measured.get(own, 0):,.0f}" for own in FORMATS) + " |")
        print(row, flush=True)
    lines += [
        *speeds,
        "",
        "Memory, beside the model and the images that are given: the images once in the chosen format (column images) "
        "and, per thread that scores, the thin weights and the activations of one batch (column peak, score).",
    ]
    Path(__file__).with_suffix(".md").write_text("\n".join(lines) + "\n")


def measure_case(name: str, pixels: int, num_calibration: int, num_holdout: int) -> tuple[str, dict[Format, float]]:
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    graph = trace_model(model, (3, pixels, pixels))
    calibration, holdout = (_batches(count, pixels) for count in (num_calibration, num_holdout))
    strategies = sample_strategies(graph, Budget(macs=0.5), NUM_CANDIDATES + 1)[1:]
    score = AdaptiveBNScore(model, graph, calibration, holdout)
    build = lambda format: score.builder.fill(strategies[0], False, format.channels_last)  # noqa: E731
    speeds = time_formats(build, calibration[0][0][:32], score.device)
    score.format = fastest_format(speeds)
    score(strategies[0], 1e-3)  # converts the images
    thin = [score.build(strategy).eval() for strategy in strategies]
    if score.format.channels_last:
        thin = [network.to(memory_format=torch.channels_last) for network in thin]
    images = [score.format.convert(batch) for batch, _ in (*calibration, *holdout)]
    bare_peak = _peak(lambda: _forward(thin[0], images, score.format))
    score_peak = _peak(lambda: score(strategies[0]))
    ratios, bare_times, score_times = [], [], []
    for _ in range(ROUNDS):
        for network, strategy in zip(thin, strategies, strict=True):
            bare_times.append(_seconds(lambda network=network: _forward(network, images, score.format)))
            score_times.append(_seconds(lambda strategy=strategy: score(strategy)))
            ratios.append(score_times[-1] / bare_times[-1])
    kept = sum(batch.numel() * batch.element_size() for batch in images) / 1e6
    bare, own_time, ratio = map(statistics.median, (bare_times, score_times, ratios))
    return (
        f"| {name} | {pixels} | {num_calibration} + {num_holdout} | {score.format} | {bare:.2f} | {own_time:.2f} | "
        f"{ratio:.3f} | {kept:.0f} | {bare_peak:.0f} MB | {score_peak:.0f} MB |",
        speeds,
    )


def _batches(count: int, pixels: int) -> list[tuple[Tensor, Tensor]]:
    return [
        (torch.randn(BATCH, 3, pixels, pixels), torch.zeros(BATCH, dtype=torch.long)) for _ in range(count // BATCH)
    ]


def _forward(network: nn.Module, images: list[Tensor], format: Format) -> None:
    with torch.inference_mode(), format.autocast(torch.device("cpu")):
        for batch in images:
            network(batch)


def _seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def _peak(work: Callable[[], object]) -> float:
    """Megabytes above what the process held before."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = _status("VmRSS")
    work()
    return (_status("VmHWM") - before) / 1000


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1])


if __name__ == "__main__":
    main()
