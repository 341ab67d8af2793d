"""`eagleeye export`."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from eagleeye_hf.errors import EagleEyeError
from eagleeye_hf.runs.arguments import flag
from eagleeye_hf.runs.models import load_model
from eagleeye_hf.runtimes.export import OPSET, export_onnx, export_program
from eagleeye_hf.tracing.trace import resolve_input_size


@dataclass(frozen=True, kw_only=True)
class Config:
    model: str = field(metadata={"help": "timm name, hf-hub:USER/REPO or checkpoint folder"})
    weights: str | None = flag(None, "safetensors file with its weights, instead of those of the Hub")
    output: str = flag("model.onnx", "file to write: .onnx for ONNX, .pt2 for a program of torch.export")
    opset: int = flag(OPSET, "version of ONNX's operators")
    image_size: int | None = flag(None, "height and width of an image in pixels, instead of the model's own")
    batch_size: int | None = flag(None, "fix the number of images; by default any number can be given")
    json: bool = flag(False, "print JSON")


def run(config: Config) -> None:
    """Write a network as ONNX or as a program of torch.export, and check that it gives the same outputs there."""
    if not config.output.endswith((".onnx", ".pt2")):
        raise EagleEyeError(f"`output={config.output}` has to end in .onnx or .pt2")
    model = load_model(config.model, config.weights)
    channels, *pixels = resolve_input_size(model, None)
    size = (channels, *([config.image_size] * 2 if config.image_size else pixels))
    if config.output.endswith(".onnx"):
        path = export_onnx(model, config.output, opset=config.opset, input_size=size, batch_size=config.batch_size)
    else:
        path = export_program(model, config.output, input_size=size, batch_size=config.batch_size)
    num_bytes = path.stat().st_size
    if config.json:
        print(json.dumps({"path": str(path), "bytes": num_bytes, "input_size": size}))
    else:
        print(f"{path}: {num_bytes / 1e6:.2f} MB, input {' x '.join(map(str, size))}, outputs checked")
