"""How a search divides among processes, with a scorer that sleeps as long as a GPU computes.

    python -m benchmarks.scale

Real processes of `accelerate launch` on the CPU, with ResNet-50's channel groups, a journal and the default settings.
A candidate sleeps for what it costs on an H200 in recorded passes (gpu.md): 0.02 s, and 0.38 s for all 3,072 images.
Seconds are those of `run_search`, from the first proposal to the result in every process.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import timm
from accelerate import Accelerator

from eagleeye_hf import SearchConfig, Strategy, run_search, trace_model
from eagleeye_hf.evaluation.objective import Score, Seen
from eagleeye_hf.processes import leave_processes
from eagleeye_hf.search.scorer import FunctionScorer

PROCESSES = (1, 2, 4, 8)
CANDIDATES = (200, 1000)
CANDIDATE, IMAGES = 0.02, 0.38
"""Seconds of a candidate, and of all images."""


class Sleeper(FunctionScorer):
    """Scores by the number of channels, and takes its time."""

    def __init__(self) -> None:
        super().__init__(lambda strategy, fraction: Score(loss=1e5 - sum(strategy.widths), reported=0, num_images=1))

    def __call__(
        self, strategy: Strategy, fraction: float = 1.0, before: Seen | None = None, matched: int = 0
    ) -> Score:
        time.sleep(CANDIDATE + IMAGES * (fraction - (before.fraction if before else 0)))
        return super().__call__(strategy, fraction)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=PROCESSES)
    parser.add_argument("--candidates", type=int, nargs="+", default=CANDIDATES)
    parser.add_argument("--here", type=Path, help="run as one of the processes, and write the seconds into this folder")
    arguments = parser.parse_args()
    if arguments.here:
        search_here(arguments.here, arguments.candidates)
        return
    seconds = {}
    for processes in arguments.processes:
        seconds[processes] = launch(processes, arguments.candidates)
        print(f"{processes} processes: {seconds[processes]}", flush=True)
    text = "\n".join(page(seconds, arguments.candidates)) + "\n"
    print(text)
    if set(PROCESSES) <= set(seconds) and list(arguments.candidates) == list(CANDIDATES):
        Path(__file__).with_suffix(".md").write_text(text)


def search_here(folder: Path, candidates: list[int]) -> None:
    accelerator = Accelerator()
    graph = trace_model(timm.create_model("resnet50"))
    found = {}
    for num in (20, *candidates):  # the first one warms up
        accelerator.wait_for_everyone()
        started = time.perf_counter()
        result = run_search(Sleeper(), graph, SearchConfig(candidates=num, divisor=8), output=folder / str(num))
        accelerator.wait_for_everyone()
        slept = sum(candidate.seconds for candidate in result.candidates)
        found[str(num)] = {"seconds": time.perf_counter() - started, "slept": slept, "loss": result.best.score.loss}
    if accelerator.is_main_process:
        (folder / "seconds.json").write_text(json.dumps(found))
    leave_processes()


def launch(processes: int, candidates: list[int]) -> dict[str, dict[str, float]]:
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable]
        if processes > 1:
            command += [
                "-m",
                "accelerate.commands.launch",
                "--multi_gpu",
                "--num_machines",
                "1",
                "--mixed_precision",
                "no",
            ]
            command += ["--dynamo_backend", "no", "--main_process_port", "0", "--num_processes", str(processes)]
        command += ["-m", "benchmarks.scale", "--here", folder, "--candidates", *map(str, candidates)]
        subprocess.run(command, env=environment, check=True)
        return json.loads((Path(folder) / "seconds.json").read_text())


def page(seconds: Mapping[int, Mapping[str, Mapping[str, float]]], candidates: list[int]) -> list[str]:
    lines = [
        "# How a search scales",
        "",
        "Made by `scale.py`: a scorer that sleeps as long as an H200 computes ResNet-50 "
        f"({CANDIDATE} s a candidate, and {IMAGES} s for all images), in processes of `accelerate launch` on "
        f"{os.cpu_count()} CPU cores, with a journal. Efficiency is the scorer's seconds over those of all processes.",
        "",
        "| candidates | processes | seconds | scoring, all processes together | efficiency |",
        "|---:|---:|---:|---:|---:|",
    ]
    for num in map(str, candidates):
        for processes, found in seconds.items():
            took, slept = found[num]["seconds"], found[num]["slept"]
            lines.append(f"| {num} | {processes} | {took:.2f} | {slept:.1f} s | {slept / took / processes:.0%} |")
    same = all(len({found[num]["loss"] for found in seconds.values()}) == 1 for num in map(str, candidates))
    return [*lines, "", f"The best candidate is {'the same' if same else 'NOT the same'} for each number of processes."]


if __name__ == "__main__":
    main()
