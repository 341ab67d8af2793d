"""Exported networks, in the runtimes that they are for."""

import errno
import os
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from eagleeye_hf import EagleEyeError, export_onnx
from eagleeye_hf.runtimes import export
from eagleeye_hf.runtimes.export import export_program
from tests.publishing.make import prune
from tests.publishing.test_loaders import OTHERS, PIXELS, QUICK

onnxruntime = pytest.importorskip("onnxruntime")

QUICK_EXPORTS = ["resnet20_cifar"]
REST = [name for name in [*QUICK, *OTHERS] if name not in QUICK_EXPORTS]


def run(path, images: torch.Tensor) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"images": images.numpy()})[0]


@pytest.mark.parametrize("name", [*QUICK_EXPORTS, *(pytest.param(name, marks=pytest.mark.slow) for name in REST)])
def test_onnx_runtime_gives_the_models_outputs(name, tmp_path):
    model, images = prune(name, PIXELS.get(name))
    path = export_onnx(model, tmp_path / "model.onnx", input_size=images.shape[1:])
    for count in (1, 2, 5):
        inputs = torch.randn(count, *images.shape[1:])
        with torch.inference_mode():
            expected = model(inputs).numpy()
        np.testing.assert_allclose(run(path, inputs), expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.slow
def test_opset_and_input_are_as_asked(tmp_path):
    import onnx

    model, _ = prune("resnet20_cifar")
    graph = onnx.load(export_onnx(model.train(), tmp_path / "model.onnx", opset=20, batch_size=4))
    assert model.training
    assert [(entry.domain, entry.version) for entry in graph.opset_import] == [("", 20)]
    shape = graph.graph.input[0].type.tensor_type.shape
    assert [dim.dim_value for dim in shape.dim] == [4, 3, 32, 32]


def test_a_program_of_torch_export(tmp_path):
    model, _ = prune("resnet20_cifar")
    path = export_program(model, tmp_path / "model.pt2", input_size=(3, 64, 64))
    program = torch.export.load(path).module()
    images = torch.randn(3, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(program(images), model(images))
    archive = zipfile.ZipFile(path)
    others = [archive.read(name) for name in archive.namelist() if "/data/weights/weight_" not in name]
    assert not any(data.startswith((b"\x80", b"PK")) for data in others), "something in it is pickled"


class Untraceable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 0:
            return x.mean((2, 3)) * self.weight
        return x.mean((2, 3))


@pytest.mark.parametrize(("function", "ending"), [(export_onnx, ".onnx"), (export_program, ".pt2")])
def test_what_fails_is_one_clear_error_and_leaves_nothing(function, ending, tmp_path, monkeypatch):
    with pytest.raises(EagleEyeError, match=r"`model` can't be exported \(.*\); give a `batch_size`"):
        function(Untraceable(), tmp_path / f"model{ending}", input_size=(3, 8, 8))
    with pytest.raises(EagleEyeError, match=f"has to end in {ending}"):
        function(Untraceable(), tmp_path / "model.txt", input_size=(3, 8, 8))
    with pytest.raises(EagleEyeError, match="there is no folder"):
        function(Untraceable(), tmp_path / "nowhere" / f"model{ending}", input_size=(3, 8, 8))
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    with pytest.raises(EagleEyeError, match="gives other outputs"):
        function(nn.Sequential(nn.Conv2d(3, 2, 1)), tmp_path / f"model{ending}", input_size=(3, 8, 8))
    assert not list(tmp_path.iterdir())


def test_a_file_is_replaced_only_where_that_is_allowed(tmp_path, monkeypatch):
    model, _ = prune("resnet20_cifar")
    path = tmp_path / "model.pt2"
    path.write_text("mine")
    with pytest.raises(EagleEyeError, match=r"`path=.*model\.pt2` exists; choose another, or .* `overwrite`"):
        export_program(model, path)
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    with pytest.raises(EagleEyeError, match="gives other outputs"):
        export_program(model, path, overwrite=True)
    assert path.read_text() == "mine"
    monkeypatch.undo()
    old = os.umask(0o027)
    try:
        export_program(model, path, overwrite=True)
    finally:
        os.umask(old)
    assert path.stat().st_mode & 0o777 == 0o640
    assert [file.name for file in tmp_path.iterdir()] == ["model.pt2"]
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(EagleEyeError, match="is a folder; give a file"):
        export_onnx(model, tmp_path / "folder.onnx", overwrite=True)


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_is_one_clear_error_and_leaves_nothing(call, tmp_path, monkeypatch):
    def fail(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(export.os, call, fail)
    with pytest.raises(EagleEyeError, match=r"`path=.*model\.pt2` can't be written: No space left on device"):
        export_program(prune("resnet20_cifar")[0], tmp_path / "model.pt2")
    assert not list(tmp_path.iterdir())


def test_half_precision_is_exported(tmp_path):
    model = prune("resnet20_cifar")[0].half()
    path = export_onnx(model, tmp_path / "model.onnx")
    images = torch.randn(2, 3, 32, 32).half()
    with torch.inference_mode():
        np.testing.assert_allclose(run(path, images), model(images).numpy(), rtol=0, atol=0.05)
    with pytest.raises(EagleEyeError, match=r"if it is the type torch\.bfloat16 that fails, export `model\.float\(\)`"):
        export_onnx(model.bfloat16(), tmp_path / "other.onnx")


WITHOUT_EXTRAS = """
import sys
for name in ("onnx", "onnxruntime", "onnxscript", "openvino", "matplotlib"):
    sys.modules[name] = None
NEED_ONNX = ("onnx_files", "onnx_integers", "onnx_runtime", "onnx_slices", "runtimes.quantize")
import importlib, pkgutil, eagleeye_hf
for module in pkgutil.walk_packages(eagleeye_hf.__path__, "eagleeye_hf."):
    drawing = ("reports.result", "reports.front", "search_plots", "study_plots")
    if not module.name.endswith((*NEED_ONNX, "openvino_runtime", *drawing)):
        importlib.import_module(module.name)
import timm
try:
    eagleeye_hf.export_onnx(timm.create_model("resnet20_cifar"), "model.onnx")
except eagleeye_hf.EagleEyeError as error:
    print(error)
"""


def test_the_rest_imports_without_onnx(tmp_path):
    command = [sys.executable, "-c", WITHOUT_EXTRAS]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "exporting to ONNX needs onnx; install it with: pip install eagleeye-hf[onnx]" in done.stdout
