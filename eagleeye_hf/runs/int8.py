"""Networks of 8-bit integers, beside the float32 ones they were made of."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from eagleeye_hf.data.splits import Splits
from eagleeye_hf.evaluation.metrics import Metrics, evaluate_model
from eagleeye_hf.runtimes.config import LatencyConfig
from eagleeye_hf.runtimes.export import beside, check_path, export_onnx, place
from eagleeye_hf.runtimes.latency import compare_programs
from eagleeye_hf.runtimes.runtime import Place, find_graph_runtime

IMAGES = 512
"""Calibration images from which the ranges of activations are taken, at most."""
LOST = 0.01
"""A loss of top-1 from which on a note says so."""
HEAD = "## In 8-bit integers"
"""Of the section of a card."""


@dataclass(frozen=True, kw_only=True)
class Int8Result:
    """A network in ONNX Runtime, as float32 and as 8-bit integers; pairs are in this order."""

    place: Place
    metrics: tuple[Metrics, Metrics]
    """On the test images."""
    milliseconds: tuple[float, float]
    file_bytes: tuple[int, int]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def rows(self) -> list[tuple[str, str, str]]:
        before, after = self.metrics
        return [
            ("test top-1", f"{before.top1:.2%}", f"{after.top1:.2%}"),
            (f"latency, {self.place.images}, {self.place}", *(f"{ms:.3g} ms" for ms in self.milliseconds)),  # type: ignore[list-item]
            ("file size (ONNX)", *(f"{size / 1e6:,.2f} MB" for size in self.file_bytes)),  # type: ignore[list-item]
        ]

    @property
    def notes(self) -> list[str]:
        """What a user has to know; nothing if all is well."""
        found = []
        before, after = self.metrics
        if after.top1 < before.top1 - LOST:
            found.append(f"8-bit integers cost {100 * (before.top1 - after.top1):.1f} points of top-1")
        if self.milliseconds[1] >= self.milliseconds[0]:
            found.append(
                f"8-bit integers are no faster here ({self.milliseconds[1]:.3g} ms, float32 "
                f"{self.milliseconds[0]:.3g}): networks with squeeze-and-excitation or hard-swish often aren't, nor "
                "are CPUs without VNNI or AMX"
            )
        return found

    def table(self) -> str:
        wide = max(len(name) for name, *_ in self.rows) + 2
        head = f"{'':{wide}}{'float32':>12}{'int8':>12}"
        return "\n".join([head, *(f"{name:{wide}}{a:>12}{b:>12}" for name, a, b in self.rows)])

    def add_to_card(self, text: str) -> str:
        """The card with these numbers in a section of their own, which replaces an older one."""
        text = re.sub(rf"^{HEAD}\n.*?(?=^## )", "", text, flags=re.MULTILINE | re.DOTALL)
        rows = "".join(f"| {name} | {a} | {b} |\n" for name, a, b in self.rows)
        section = (
            f"{HEAD}\n\nQuantised by ONNX Runtime (static, QDQ, weights per channel; `eagleeye export --int8`), on "
            f"{self.metrics[0].num_images} test images.\n\n| | float32 | int8 |\n|---|---:|---:|\n{rows}\n"
        )
        place = re.search(r"^## How to load it", text, re.MULTILINE)
        return text[: place.start()] + section + text[place.start() :] if place else f"{text}\n{section}"


def export_int8(
    model: nn.Module,
    data: Splits,
    path: Path,
    measuring: LatencyConfig,
    input_size: Sequence[int] | None = None,
    *,
    opset: int,
    batch_size: int | None = None,
    overwrite: bool = False,
) -> Int8Result:
    """Write a network as an ONNX file of 8-bit integers, and measure it beside float32: top-1 on the test images, in
    ONNX Runtime, and milliseconds in random turns, in the runtime asked for.

    Args:
        batch_size: how many images the file is to take at once; None leaves it open.
    Raises:
        EagleEyeError: `path` can't be written, or the network can't be exported or quantised.
    """
    from eagleeye_hf.runtimes.onnx_runtime import OnnxModel  # needs the extra `onnx`
    from eagleeye_hf.runtimes.quantize import fix_batch, quantize_onnx

    runtime = find_graph_runtime(replace(measuring, int8=False))
    path = check_path(path, ".onnx", overwrite)
    with beside(path) as folder:
        files = [folder / "float32.onnx", folder / "int8.onnx"]
        export_onnx(model, files[0], opset=opset, input_size=input_size)
        quantize_onnx(files[0], take_images(data), files[1])
        metrics = [evaluate_model(OnnxModel(file), data.test.batches()) for file in files]
        images = data.calibration.cached_batches()[0][0][: runtime.place.batch_size].float()
        first, second = [runtime.load_graph(file.read_bytes(), images) for file in files]
        (latency,) = compare_programs(first, [second], runtime.place)
        result = Int8Result(
            place=runtime.place,
            metrics=(metrics[0], metrics[1]),
            milliseconds=(latency.full_ms, latency.milliseconds),
            file_bytes=(files[0].stat().st_size, files[1].stat().st_size),
        )
        if batch_size is not None:
            fix_batch(files[1], batch_size)
        place(files[1], path)
    return result


def test_int8(model: nn.Module, data: Splits, num_workers: int) -> tuple[Metrics, int]:
    """A network quantised with the calibration images: its metrics on the test images, and the bytes of its file."""
    from eagleeye_hf.runtimes.onnx_runtime import OnnxModel  # needs the extra `onnx`
    from eagleeye_hf.runtimes.quantize import quantize_onnx

    with tempfile.TemporaryDirectory() as folder:
        plain = export_onnx(model, Path(folder) / "float32.onnx")
        path = quantize_onnx(plain, take_images(data), Path(folder) / "int8.onnx")
        return evaluate_model(OnnxModel(path), data.test.batches(num_workers=num_workers)), path.stat().st_size


def take_images(data: Splits) -> list[torch.Tensor]:
    """Some of the calibration images, in small batches."""
    batches, taken = list[torch.Tensor](), 0
    for images, _ in data.calibration.cached_batches():
        batches += images[: IMAGES - taken].split(32)
        taken += len(images)
        if taken >= IMAGES:
            break
    return batches
