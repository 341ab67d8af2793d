"""Networks of 8-bit integers, by ONNX Runtime's static quantisation. Needs the extra `onnx`."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from onnxruntime.tools.onnx_model_utils import make_dim_param_fixed

from eagleeye_hf.errors import EagleEyeError
from eagleeye_hf.networks.running import AnyBatch, images_of
from eagleeye_hf.runtimes.export import beside, check_path, place
from eagleeye_hf.runtimes.onnx_files import INPUT


def quantize_onnx(
    path: str | Path, calibration: Iterable[AnyBatch], out: str | Path, *, overwrite: bool = False
) -> Path:
    """Quantise an exported network to 8-bit integers with ONNX Runtime's static quantisation: QDQ format, weights per
    channel.

    Args:
        path: ONNX file, as `export_onnx` writes it.
        calibration: batches of normalised images, some hundreds together, from which the ranges of activations come.
        out: file to write, to end in `.onnx`.
        overwrite: replace a file that is there.
    Raises:
        EagleEyeError: `path` is no such file, `out` can't be written, there are no images, or the result does not run.
    """
    out = check_path(out, ".onnx", overwrite)
    if not Path(path).is_file():
        raise EagleEyeError(f"`path={path}` does not exist; write it with `export_onnx`")
    batches = [images_of(batch).cpu().float().numpy() for batch in calibration]
    if not batches:
        raise EagleEyeError("`calibration` has no images; ranges of activations need some hundreds")
    with beside(out) as folder:
        part = folder / out.name
        try:
            onnx.save(quantize_proto(onnx.load(path), batches), part)
            session = onnxruntime.InferenceSession(str(part), providers=["CPUExecutionProvider"])
            outputs = session.run(None, {INPUT: batches[0]})[0]
        except Exception as error:  # ONNX Runtime raises many kinds
            raise EagleEyeError(f"`path={path}` can't be quantised ({type(error).__name__}: {error!s:.200})") from error
        if not np.isfinite(outputs).all():
            raise EagleEyeError(f"`path={path}`, quantised, gives outputs that are not finite; it is not kept")
        place(part, out)
    return out


def fix_batch(path: Path, batch_size: int) -> None:
    """Let a file that takes any number of images take this many."""
    proto = onnx.load(path)
    name = proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    make_dim_param_fixed(proto.graph, name, batch_size)
    onnx.save(proto, path)


class _Images(CalibrationDataReader):
    """Batches, one after the other."""

    def __init__(self, batches: Sequence[np.ndarray]) -> None:
        self._rest = iter(batches)

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self._rest, None)
        return None if batch is None else {INPUT: batch}


def quantize_proto(proto: Any, calibration: Sequence[np.ndarray]) -> Any:
    """The quantised version of an exported network: QDQ format, weights per channel, signed.

    Args:
        calibration: batches of normalised images, shape `(N, C, H, W)`, from which the ranges of activations are taken.
    """
    with tempfile.TemporaryDirectory() as folder, _quiet():
        plain, prepared, out = (Path(folder) / f"{name}.onnx" for name in ("plain", "prepared", "quantized"))
        onnx.save(proto, plain)
        quant_pre_process(plain, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            out,
            _Images(calibration),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options={"ActivationSymmetric": False},
        )
        return onnx.load(out)


@contextmanager
def _quiet() -> Iterator[None]:
    """ONNX Runtime's tools advise what was done already."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
