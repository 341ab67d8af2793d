"""`eagleeye export`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any

from eagleeye_hf.commands.printing import PrintConfig
from eagleeye_hf.configs import Within, check_fields
from eagleeye_hf.errors import EagleEyeError
from eagleeye_hf.runs.config import NetworkConfig
from eagleeye_hf.runtimes.config import OPSET, OPSETS


@dataclass(frozen=True, kw_only=True)
class Config:
    network: NetworkConfig
    output: str = "model.onnx"
    """File to write: .onnx for ONNX, .pt2 for a program of torch.export."""
    opset: Annotated[int, Within(OPSETS)] = OPSET
    """Version of ONNX's operators."""
    image_size: Annotated[int, Within("[1, inf)")] | None = None
    """Height and width of an image in pixels, instead of the model's own."""
    batch_size: Annotated[int, Within("[1, inf)")] | None = None
    """Fix the number of images; by default any number can be given."""
    overwrite: bool = False
    """Replace a file that is there."""
    printing: PrintConfig = PrintConfig()

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.output.endswith((".onnx", ".pt2")):
            raise EagleEyeError(f"`output={self.output}` has to end in .onnx or .pt2")


def run(config: Config) -> None:
    """Write a network as ONNX or as a program of torch.export, and check that it gives the same outputs there."""
    from eagleeye_hf.networks.description import describe_input
    from eagleeye_hf.runs.models import load_model
    from eagleeye_hf.runtimes.export import export_onnx, export_program

    model = load_model(config.network.model, config.network.weights)
    channels, *pixels = describe_input(model)
    size = (channels, *([config.image_size] * 2 if config.image_size else pixels))
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
