"""Everything of this package that waits for a GPU, in one command that needs no network; prints a page.

    python -m benchmarks.gpu --output outputs/gpu          # tests, scoring, training, latency, ImageNet's time
    python -m benchmarks.gpu scoring latency               # some of it
    python -m benchmarks.gpu page

Networks have random weights and images are noise: it is speed that is measured. What is done stays in --output.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.io import decode_jpeg

from benchmarks.speed_224 import synthetic_jpegs
from eagleeye_hf import (
    AdaptiveBNScore,
    Budget,
    EagleEyeError,
    SearchConfig,
    Strategy,
    choose_channels,
    measure_latency,
    run_search,
    sample_strategies,
    slice_model,
    trace_model,
)
from eagleeye_hf.channels.graph import ChannelGraph
from eagleeye_hf.evaluation.format import Format
from eagleeye_hf.evaluation.prepare import record_passes
from eagleeye_hf.runs.plan import Counts, Rates, about, predict_phases, time_steps
from eagleeye_hf.runtimes.alignment import measure_alignment
from eagleeye_hf.runtimes.config import LatencyConfig, RuntimeName
from eagleeye_hf.runtimes.runtime import TITLES, find_runtime

MODELS = ("mobilenetv1_100", "resnet50")
CALIBRATION, HOLDOUT = 1024, 2048
"""Images per candidate, the defaults of a search."""
TESTS = ("tests/test_gpu.py", "tests/runtimes/test_runtimes.py", "tests/training/test_finetune.py")
"""Files that have tests which are marked `gpu`."""
STEP = 256
"""Images of a training step."""
IMAGENET = Counts(train=1_281_167 - CALIBRATION - HOLDOUT, calibration=CALIBRATION, holdout=HOLDOUT, test=50_000)
FORMATS = {"float32": Format(channels_last=True), "bfloat16": Format(channels_last=True, bfloat16=True)}
SCORED = (("float32", 128), ("bfloat16", 128), ("bfloat16", 256))
"""Formats and batches."""
DIVISORS = (1, 8, 32)
TIMED = ((torch.float32, 64), (torch.float16, 64), (torch.bfloat16, 64), (torch.bfloat16, 1))
"""Precisions and batches; the first pass of each network takes seconds, in which the library looks for kernels."""
Row = dict[str, object]


def make(name: str, divisor: int | None = None) -> tuple[nn.Module, ChannelGraph, nn.Module]:
    """A network, what it is made of, and a version of it at half the MACs."""
    model = timm.create_model(name).eval()
    graph = trace_model(model)
    strategy = sample_strategies(graph, Budget(macs=0.5, tolerance=0.03), 2, seed=0, divisor=divisor or 8)[1]
    keep = choose_channels(model, graph, strategy.widths)
    return model.cuda(), graph, slice_model(model, graph, keep).eval().cuda()


def fastest(run: Callable[[], object], turns: int = 5) -> float:
    times = []
    for _ in range(turns):
        torch.cuda.synchronize()
        started = time.perf_counter()
        run()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return min(times)


def busy(run: Callable[[], object]) -> float:
    """The part of the time in which a kernel runs."""
    took = fastest(run, 3)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        run()
        torch.cuda.synchronize()
    kernels = [event for event in profiler.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    return sum(kernel.device_time for kernel in kernels) / 1e6 / took


def tests(folder: Path) -> Iterator[Row]:
    """The tests that are marked so, and how many passed."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-rs", "--durations=8", *TESTS]
    told = subprocess.run(command, capture_output=True, text=True)
    (folder / "tests.log").write_text(told.stdout + told.stderr)
    yield {"result": told.stdout.strip().splitlines()[-1], "skipped": _skips(told.stdout)}


def _skips(printed: str) -> list[str]:
    return [line.split(": ", 2)[-1] for line in printed.splitlines() if line.startswith("SKIPPED")]


def noise(count: int, size: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator("cuda").manual_seed(0)
    return [
        (torch.randn(size, 3, 224, 224, device="cuda", generator=generator).cpu(), torch.arange(size) % 1000)
        for _ in range(count // size)
    ]


def scoring(folder: Path) -> Iterator[Row]:
    """Candidates that were not seen before, as thin networks and in the full network's shapes."""
    for name in MODELS:
        model, graph, _ = make(name)
        strategies = sample_strategies(graph, Budget(macs=0.5), 9, seed=0, divisor=4)[1:]
        for title, size in SCORED:
            images = noise(CALIBRATION, size), noise(HOLDOUT, size)
            score = AdaptiveBNScore(model, graph, *images, format=FORMATS[title])
            for recorded in (False, True):
                if recorded and not record_passes(score, strategies[:3]):
                    yield {"model": name, "batch": size, "format": title, "failed": True}
                    continue
                found = _time_score(score, strategies[3:] if recorded else strategies[3:5])
                yield {"model": name, "batch": size, "format": title, "recorded": recorded, **found}
            del score
            torch.cuda.empty_cache()


def searches(folder: Path) -> Iterator[Row]:
    """Leaders of a search, trained for 16 steps before they are scored, and a whole search of 100 candidates."""
    for name in MODELS:
        model, graph, _ = make(name)
        strategies = sample_strategies(graph, Budget(macs=0.5), 9, seed=1, divisor=4)[1:]
        format = FORMATS["bfloat16"]
        score = AdaptiveBNScore(model, graph, noise(CALIBRATION, 128), noise(HOLDOUT, 128), format=format)
        started = time.perf_counter()
        score.unit_scores()
        yield {"model": name, "ranked": time.perf_counter() - started}
        for recorded in (False, True):
            if not recorded or record_passes(score, strategies[:3]):
                score(strategies[0], matched=1)
                yield {"model": name, "recorded": recorded, "steps": 16, **_time_score(score, strategies[1:4], 16)}
        started = time.perf_counter()
        config = SearchConfig(macs=0.5, candidates=100, divisor=4)
        output = folder / f"search_{name}_{time.time_ns()}"
        run_search(score, graph, config, output=output)
        seconds = time.perf_counter() - started
        rows = [json.loads(line) for line in (output / "search.jsonl").read_text().splitlines()]
        trained = sum(row["seconds"] for row in rows if (row.get("score") or {}).get("matched"))
        yield {"model": name, "candidates": 100, "seconds": seconds, "trained": trained, "recorded": score.recorded}
        del score


def _time_score(score: AdaptiveBNScore, strategies: Sequence[Strategy], matched: int = 0) -> Row:
    """Each strategy is new, as those of a search are."""
    torch.cuda.reset_peak_memory_stats()
    times = [fastest(partial(score, strategy, matched=matched), 1) for strategy in strategies]
    return {
        "seconds": statistics.median(times),
        "again": fastest(partial(score, strategies[0], matched=matched), 2),
        "busy": busy(partial(score, strategies[0], matched=matched)),
        "gigabytes": torch.cuda.max_memory_allocated() / 1e9,
    }


def training(folder: Path) -> Iterator[Row]:
    """Images per second of training steps: the full network, and half of it with and without its teacher."""
    for name in MODELS:
        model, _, thin = make(name)
        teacher = copy.deepcopy(model).to(memory_format=torch.channels_last)
        for title, network, taught in (("full", model, None), ("half", thin, None), ("half, distilled", thin, teacher)):
            torch.cuda.reset_peak_memory_stats()
            seconds = fastest(make_step(network, taught), 8)
            gigabytes = torch.cuda.max_memory_allocated() / 1e9
            yield {"model": name, "network": title, "images_per_second": STEP / seconds, "gigabytes": gigabytes}


def make_step(network: nn.Module, teacher: nn.Module | None) -> Callable[[], None]:
    """One step of training a copy."""
    trained = copy.deepcopy(network).train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.01, momentum=0.9)
    images = torch.randn(STEP, 3, 224, 224, device="cuda").to(memory_format=torch.channels_last)
    labels = torch.arange(STEP, device="cuda")

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            logits = trained(images)
            loss = F.cross_entropy(logits, labels)
            if teacher is not None:
                with torch.no_grad():
                    wanted = teacher(images)
                loss = loss + F.kl_div(logits.log_softmax(1), wanted.softmax(1), reduction="batchmean")
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def latency(folder: Path) -> Iterator[Row]:
    """Milliseconds of networks at half their MACs, by multiple of channels, precision, batch and runtime."""
    for name in MODELS:
        model, thin = make_widths(name, DIVISORS)
        for precision, batch in TIMED:
            yield compare(name, model, thin, "torch", precision, batch)
    yield {"alignment": measure_alignment(find_runtime(LatencyConfig(), "cuda"))}


def onnx(folder: Path) -> Iterator[Row]:
    """The same in ONNX Runtime, where each network is exported first."""
    for runtime in ("onnxruntime-cuda", "tensorrt"):
        try:
            for name in MODELS:
                model, thin = make_widths(name, DIVISORS)
                for precision in (torch.float32, torch.float16):
                    yield compare(name, model, thin, runtime, precision, 64)
        except EagleEyeError as error:
            yield {"runtime": runtime, "failed": str(error)}


def compiled(folder: Path) -> Iterator[Row]:
    """The same with `torch.compile`, which takes half a minute for each network."""
    for name in MODELS:
        yield compare(name, *make_widths(name, (8,)), "compile", torch.bfloat16, 64)


def make_widths(name: str, divisors: Sequence[int]) -> tuple[nn.Module, dict[int, nn.Module]]:
    model, graph, _ = make(name)
    thin = {}
    for divisor in divisors:
        try:
            strategy = sample_strategies(graph, Budget(macs=0.5, tolerance=0.05), 2, seed=0, divisor=divisor)[1]
        except EagleEyeError:  # so coarse a network does not meet the budget
            continue
        thin[divisor] = slice_model(model, graph, choose_channels(model, graph, strategy.widths)).eval()
    return model, thin


def compare(
    name: str, model: nn.Module, thin: dict[int, nn.Module], runtime: RuntimeName, precision: torch.dtype, batch: int
) -> Row:
    networks = [
        copy.deepcopy(network).to("cuda", precision, memory_format=torch.channels_last)
        for network in (model, *thin.values())
    ]
    times = measure_latency(networks, (3, 224, 224), runtime, batch_size=batch, rounds=30)
    return {
        "model": name,
        "runtime": runtime,
        "precision": str(precision).removeprefix("torch."),
        "batch": batch,
        "full_ms": times[0],
        "left": {str(divisor): ms / times[0] for divisor, ms in zip(thin, times[1:], strict=True)},
    }


def decoding(folder: Path) -> Iterator[Row]:
    """Images of 500 x 375 pixels per second: by the GPU, which then resizes them one by one, and by one core."""
    jpegs = [torch.frombuffer(bytearray(jpeg), dtype=torch.uint8) for jpeg in synthetic_jpegs(256)]

    def resize() -> None:
        for image in images:
            F.interpolate(image[None].float(), (224, 224), mode="bilinear", antialias=True)

    for size in (32, 256):
        images = decode_jpeg(jpegs[:size], device="cuda")
        rates = {"decoded": size / fastest(partial(decode_jpeg, jpegs[:size], device="cuda"))}
        yield {"decoder": "the GPU", "batch": size, **rates, "resized": size / fastest(resize)}
    torch.set_num_threads(1)
    yield {"decoder": "one core", "batch": 1, "decoded": 256 / fastest(lambda: [decode_jpeg(jpeg) for jpeg in jpegs])}


def imagenet(folder: Path) -> Iterator[Row]:
    """How long the paper's experiments may take, predicted from timed steps as `--dry-run` does."""
    from accelerate import Accelerator
    from PIL import Image

    from eagleeye_hf.data.transforms import build_preprocessing
    from recipes.mbv1 import MobileNetV1Config
    from recipes.resnet50 import ResNet50Config

    accelerator = Accelerator(mixed_precision="bf16")
    for name, config in (("mobilenetv1_100", MobileNetV1Config()), ("resnet50", ResNet50Config())):
        model = timm.create_model(name).eval().cuda()
        transform = build_preprocessing(model)[0].transform
        jpegs = synthetic_jpegs(64)
        started = time.perf_counter()
        for jpeg in jpegs:
            transform(Image.open(io.BytesIO(jpeg)).convert("RGB"))
        decode = (time.perf_counter() - started) / len(jpegs)
        rates = time_steps(model, torch.randn(256, 3, 224, 224), torch.arange(256), decode, accelerator)
        for processes in (1, 8):
            phases = predict_phases(config, IMAGENET, rates, processes)
            yield {
                "model": name,
                "gpus": processes,
                "workers": config.data.num_workers,
                "rates": asdict(rates),
                "phases": {phase.name: phase.seconds for phase in phases},
            }


STEPS = {
    "tests": tests,
    "scoring": scoring,
    "searches": searches,
    "training": training,
    "latency": latency,
    "onnx": onnx,
    "compiled": compiled,
    "decoding": decoding,
    "imagenet": imagenet,
}


def page(folder: Path) -> str:
    """All that is in the folder, as Markdown."""
    found = {name: json.loads((folder / f"{name}.json").read_text()) for name in STEPS if _done(folder, name)}
    device = next(iter(found.values()))["device"] if found else "no GPU"
    lines = [f"# On a GPU: {device}", "", "Made by `gpu.py`: random weights, noise for images, 224 px."]
    for name, (title, head, row) in TABLES.items():
        if name in found:
            lines += ["", f"## {title}", "", *head, *(line for line in map(row, found[name]["rows"]) if line)]
    return "\n".join(lines) + "\n"


def _done(folder: Path, name: str) -> bool:
    return (folder / f"{name}.json").exists()


def _test_row(row: dict) -> str:
    skipped = "".join(f"\n- skipped: {reason}" for reason in row["skipped"])
    return f"`pytest -m gpu`: {row['result']}{skipped}"


def _score_row(row: dict) -> str:
    if "failed" in row:
        return f"| {row['model']} | {row['batch']} | {row['format']} | can't be recorded | | | | |"
    how = "recorded" if row["recorded"] else "thin"
    return (
        f"| {row['model']} | {row['batch']} | {row['format']} | {how} | {row['seconds']:.3f} s | {row['again']:.3f} s "
        f"| {row['busy']:.0%} | {row['gigabytes']:.1f} GB |"
    )


def _search_row(row: dict) -> str:
    how = "recorded" if row.get("recorded") else "thin"
    if "ranked" in row:
        return f"| {row['model']} | channels ranked | | {row['ranked']:.1f} s | |"
    if "candidates" in row:
        what = f"a whole search of {row['candidates']}, of it its leaders {row['trained']:.1f} s"
        return f"| {row['model']} | {what} | {how} | {row['seconds']:.1f} s | |"
    what = f"a leader: {row['steps']} steps, scored before and after"
    return f"| {row['model']} | {what} | {how} | {row['seconds']:.2f} s | {row['gigabytes']:.1f} GB |"


def _training_row(row: dict) -> str:
    return f"| {row['model']} | {row['network']} | {row['images_per_second']:,.0f} | {row['gigabytes']:.1f} GB |"


def _latency_row(row: dict) -> str:
    if "alignment" in row:
        return f"\n`--divisor auto` finds {row['alignment']} for PyTorch in float32, one image."
    if "failed" in row:
        return f"| | {TITLES[row['runtime']]} | not measured | | | | | |"
    parts = " | ".join(f"{row['left'][str(d)]:.2f}" if str(d) in row["left"] else "" for d in DIVISORS)
    return (
        f"| {row['model']} | {TITLES[row['runtime']]} | {row['precision']} | {row['batch']} "
        f"| {row['full_ms']:.2f} ms | {parts} |"
    )


def _decoding_row(row: dict) -> str:
    resized = f"{row['resized']:,.0f}" if "resized" in row else ""
    return f"| {row['decoder']} | {row['batch']} | {row['decoded']:,.0f} | {resized} |"


def _imagenet_row(row: dict) -> str:
    times = " | ".join(about(row["phases"].get(name, 0)) for name in ("search", "fine-tuning", "measuring"))
    rates = Rates(**row["rates"])
    step = rates.train / 2 + rates.forward  # half of the full network's work, and the full network's outputs
    bound = "decoding" if rates.decode / row["workers"] > step else "the GPU"
    return (
        f"| {row['model']} | {row['gpus']} | {times} | {bound} | {1 / rates.forward:,.0f} | {1 / rates.train:,.0f} "
        f"| {row['workers']} x {1 / rates.decode:,.0f} |"
    )


LATENCY_HEAD = [
    "| network | runtime | precision | batch | full | any width | x 8 | x 32 |",
    "|---|---|---|---:|---:|---:|---:|---:|",
]
TABLES: dict[str, tuple[str, list[str], Callable[[dict], str]]] = {
    "tests": ("Tests", [], _test_row),
    "scoring": (
        f"Scoring: {CALIBRATION:,} images calibrate and {HOLDOUT:,} score a candidate at half the MACs",
        [
            "A *thin* network of new widths makes the GPU's library look for kernels; in the full network's shapes, "
            "with zeros in place of what was removed, passes are *recorded* once as CUDA graphs. A search scores most "
            "candidates on a part of the images.",
            "",
            "| network | batch | format | | a new candidate | the same again | GPU busy then | memory at most |",
            "|---|---:|---|---|---:|---:|---:|---:|",
        ],
        _score_row,
    ),
    "searches": (
        "A search in bfloat16, batches of 128",
        ["| network | | | takes | memory at most |", "|---|---|---|---:|---:|"],
        _search_row,
    ),
    "training": (
        f"Training steps of {STEP} images in bfloat16, channels last, images on the device",
        ["| network | | images/s | memory at most |", "|---|---|---:|---:|"],
        _training_row,
    ),
    "latency": (
        "Milliseconds at half the MACs, of the full network's, by the multiple of channels",
        LATENCY_HEAD,
        _latency_row,
    ),
    "onnx": ("The same in ONNX Runtime", LATENCY_HEAD, _latency_row),
    "compiled": ("The same with `torch.compile`", LATENCY_HEAD, _latency_row),
    "decoding": (
        "JPEGs of 500 x 375 pixels, images a second",
        ["| decoded by | at a time | decoded | resized to 224 px, then, on the GPU |", "|---|---:|---:|---:|"],
        _decoding_row,
    ),
    "imagenet": (
        "ImageNet, predicted from timed steps",
        [
            "As `--dry-run` predicts, with the recipes' settings: 1,000 candidates, 120 epochs of fine-tuning with the "
            "full network as teacher. `bound by` says what an epoch waits for; rates are images a second.",
            "",
            "| network | GPUs | search | fine-tuning | measuring | bound by | passes | training steps | decoding, "
            "processes x rate |",
            "|---|---:|---:|---:|---:|---|---:|---:|---:|",
        ],
        _imagenet_row,
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("steps", nargs="*", help="some of " + ", ".join((*STEPS, "page")))
    parser.add_argument("--output", type=Path, default=Path("outputs/gpu"))
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    for name in arguments.steps or STEPS:
        if name == "page":
            continue
        rows: list[Row] = []
        started = time.perf_counter()
        for row in STEPS[name](arguments.output):
            rows.append(row)
            print(name, row, flush=True)
            told = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "rows": rows}
            (arguments.output / f"{name}.json").write_text(json.dumps(told, indent=1))
        print(f"{name}: {time.perf_counter() - started:.0f} s", flush=True)
        torch.cuda.empty_cache()
    text = page(arguments.output)
    print(text)
    Path(__file__).with_suffix(".md").write_text(text)


if __name__ == "__main__":
    main()
