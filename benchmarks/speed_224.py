"""Candidates per hour on MobileNetV1 at 224 px with JPEGs of ImageNet's size; speed alone, random weights."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms

from benchmarks.peers import NORMALIZE, Jpegs, count_macs, score_as_the_paper
from eagleeye_hf import AdaptiveBNScore, Budget, SearchConfig, run_search, sample_strategies, slice_model, trace_model

PAPER_IMAGES = 100 * 128, 10_000
"""That calibrate and score one candidate in the paper's procedure."""
OUR_IMAGES = 1024, 2048
NUM_SAMPLE = 128
"""Images on which the paper's passes are timed, each; what they take is proportional."""


def synthetic_jpegs(count: int) -> list[bytes]:
    """Smooth noise, 500 x 375 pixels: about as many bytes as a photograph."""
    random = np.random.default_rng(0)
    jpegs = []
    for _ in range(count):
        small = Image.fromarray(random.integers(0, 256, (47, 63, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        small.resize((500, 375), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
        jpegs.append(buffer.getvalue())
    return jpegs


def measure_speed(arm: str, output: Path) -> None:
    report = output / f"mobilenetv1_224_{arm}.json"
    output.mkdir(parents=True, exist_ok=True)
    if not report.exists():
        result = {"paper": _time_paper, "ours": _time_ours}[arm]()
        report.write_text(json.dumps(result | {"threads": torch.get_num_threads()}, indent=1))
    print(report.read_text())


def _loader(count: int) -> DataLoader:
    steps = [transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor(), NORMALIZE]
    data = Jpegs(synthetic_jpegs(count), torch.zeros(count, dtype=torch.long), transforms.Compose(steps))
    return DataLoader(data, 64, num_workers=2)


def _time_paper() -> dict[str, float]:
    """One accepted candidate: the rejected ones before it (deep copy, prune, count), then its images."""
    import copy

    model = timm.create_model("mobilenetv1_100").eval()
    graph = trace_model(model)
    strategy = sample_strategies(graph, Budget(macs=0.5), 2)[1]
    keep = {g.name: range(w) for g, w in zip(graph.groups, strategy.widths, strict=True) if w < g.channels}
    loader = _loader(NUM_SAMPLE)
    started = time.perf_counter()
    for _ in range(3):
        thin = slice_model(copy.deepcopy(model), graph, keep)
        count_macs(thin, (1, 3, 224, 224))
    build = (time.perf_counter() - started) / 3
    score_as_the_paper(thin, loader, loader, 1)  # starts worker processes, warms caches
    started = time.perf_counter()
    score_as_the_paper(thin, loader, loader, NUM_SAMPLE // 64)
    per_image = (time.perf_counter() - started) / (2 * NUM_SAMPLE)
    accepted = 0.03  # measured: the share of uniform draws within 0.005 of half the MACs of MobileNetV1
    seconds = build / accepted + per_image * sum(PAPER_IMAGES)
    return {"seconds_per_candidate": seconds, "candidates_per_hour": 3600 / seconds, "timed_images": 2 * NUM_SAMPLE}


def _time_ours() -> dict[str, float]:
    model = timm.create_model("mobilenetv1_100").eval()
    graph = trace_model(model)
    started = time.perf_counter()
    images = torch.cat([images for images, _ in _loader(sum(OUR_IMAGES) // 4)])
    labels = torch.zeros(len(images), dtype=torch.long)
    decode = 4 * (time.perf_counter() - started)
    parts = [list(zip(i.split(128), j.split(128), strict=True)) for i, j in (
        (images[: OUR_IMAGES[0] // 4], labels[: OUR_IMAGES[0] // 4]),
        (images[OUR_IMAGES[0] // 4 :], labels[OUR_IMAGES[0] // 4 :]),
    )]  # fmt: skip
    score = AdaptiveBNScore(model, graph, parts[0] * 4, parts[1] * 4)  # the same images four times: time is the same
    started = time.perf_counter()
    result = run_search(score, graph, SearchConfig(macs=0.5, candidates=8, generation=8))
    seconds = time.perf_counter() - started
    spent = sum(candidate.seconds for candidate in result.candidates) / score.workers / len(result.candidates)
    return {
        "seconds_per_candidate": spent,
        "candidates_per_hour": 3600 / spent,
        "decode_seconds_once": decode,
        "search_seconds_of_8": seconds,
    }
