"""`eagleeye export`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from eagleeye_hf.commands.printing import PrintConfig
from eagleeye_hf.configs import Within, check_fields
from eagleeye_hf.data.config import DatasetConfig, HeldOutConfig
from eagleeye_hf.errors import EagleEyeError
from eagleeye_hf.runs.config import NetworkConfig, Seed, split_arguments
from eagleeye_hf.runtimes.config import OPSET, OPSETS, LatencyConfig
from eagleeye_hf.telling import warn


@dataclass(frozen=True, kw_only=True)
class Config:
    network: NetworkConfig
    output: str = "model.onnx"
    """File to write: .onnx for ONNX, .pt2 for a program of torch.export."""
    opset: Annotated[int, Within(OPSETS)] = OPSET
    """Version of ONNX's operators."""
    batch_size: Annotated[int, Within("[1, inf)")] | None = None
    """Fix the number of images; by default any number can be given."""
    overwrite: bool = False
    """Replace a file that is there."""
    measuring: LatencyConfig = LatencyConfig()
    data: DatasetConfig = DatasetConfig()
    held_out: HeldOutConfig = HeldOutConfig(holdout_images=0)
    seed: Seed = 0
    """Of the choice of calibration images."""
    printing: PrintConfig = PrintConfig()

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.output.endswith((".onnx", ".pt2")):
            raise EagleEyeError(f"`output={self.output}` has to end in .onnx or .pt2")
        if self.measuring.int8 and not self.output.endswith(".onnx"):
            raise EagleEyeError(f"`int8` is written as ONNX; `output={self.output}` has to end in .onnx")
        if self.measuring.int8 and self.held_out.calibration_images == 0:
            raise EagleEyeError("`calibration_images=0`: `int8` takes the ranges of activations from images; give some")


def run(config: Config) -> None:
    """Write a network as ONNX or as a program of torch.export, and check that it gives the same outputs there.

    With --int8 it is quantised, the ranges of activations taken from calibration images of the dataset, and top-1 and
    milliseconds are measured beside float32; the card of a checkpoint folder is told.
    """
    from eagleeye_hf.networks.description import describe_input
    from eagleeye_hf.runs.models import load_model
    from eagleeye_hf.runtimes.export import export_onnx, export_program

    model = load_model(config.network.model, config.network.weights, config.network.inputs)
    size = describe_input(model)
    if config.measuring.int8:
        _write_int8(config, model, size)
        return
    options: dict[str, Any] = {"input_size": size, "batch_size": config.batch_size, "overwrite": config.overwrite}
    if config.output.endswith(".onnx"):
        path = export_onnx(model, config.output, opset=config.opset, **options)
    else:
        path = export_program(model, config.output, **options)
    num_bytes = path.stat().st_size
    if config.printing.json:
        print(json.dumps({"path": str(path), "bytes": num_bytes, "input_size": size}))
    else:
        print(f"{path}: {num_bytes / 1e6:.2f} MB, input {' x '.join(map(str, size))}, outputs checked")


def _write_int8(config: Config, model: Any, size: tuple[int, ...]) -> None:
    """Quantise, measure beside float32, and add the numbers to the card of a checkpoint folder."""
    from eagleeye_hf.data.splits import open_splits
    from eagleeye_hf.files import write_whole
    from eagleeye_hf.publishing.config import CARD
    from eagleeye_hf.runs.int8 import export_int8
    from eagleeye_hf.runtimes.export import check_path
    from eagleeye_hf.runtimes.runtime import find_graph_runtime

    path = check_path(config.output, ".onnx", config.overwrite)  # before anything takes time
    find_graph_runtime(config.measuring)
    data = open_splits(like=model, **split_arguments(config.data, config.held_out, seed=config.seed))
    options: dict[str, Any] = {"opset": config.opset, "batch_size": config.batch_size, "overwrite": config.overwrite}
    found = export_int8(model, data, path, config.measuring, size, **options)
    card = Path(config.network.model) / CARD
    if card.is_file():
        write_whole(card, found.add_to_card(card.read_text(encoding="utf-8")))
    if config.printing.json:
        print(json.dumps(found.to_dict()))
        return
    print(found.table())
    for note in found.notes:
        warn(note)
    print(f"\n{path}: {path.stat().st_size / 1e6:.2f} MB" + (f"; the numbers are in {card}" if card.is_file() else ""))
