"""Every runtime runs thin networks as they are, and tells where their time goes."""

import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
from torch import nn

from eagleeye_hf import EagleEyeError, slice_model, trace_model
from eagleeye_hf.runtimes import runtime as runtimes
from eagleeye_hf.runtimes.alignment import measure_alignment
from eagleeye_hf.runtimes.config import LatencyConfig
from eagleeye_hf.runtimes.profiles import assign_weights
from eagleeye_hf.runtimes.runtime import find_runtime
from tests.helpers import make_model, random_blocks, random_keep

ON_CPU = ["torch", "onnxruntime", "openvino"]
QUICK = ["resnet20_cifar"]
REST = ["mobilenetv3_small_050", "regnety_002", "resnext26ts", "tf_mixnet_s", "ghostnet_050", "densenet121"]
REST += ["eca_resnet33ts", "repvgg_a0", "dla34", "hrnet_w18_small", "shufflenet_v2_x0_5", "res2net50_26w_4s"]


def need(name: str) -> None:
    if name != "torch":
        pytest.importorskip("onnxruntime")
        pytest.importorskip(name)


def make_known(name: str) -> nn.Module:
    if not timm.is_model(name):
        pytest.skip(f"this timm has no {name}")
    return make_model(name)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("model_name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in REST)])
@pytest.mark.parametrize("name", ON_CPU)
def test_thin_programs_compute_what_the_sliced_model_does(name, model_name):
    """Cut out of one exported graph, depthwise and grouped layers, splits and padded shortcuts included."""
    need(name)
    model = make_known(model_name)
    pixels = 32 if "cifar" in model_name else 64
    images = torch.randn(2, 3, pixels, pixels)
    graph = trace_model(model, (3, pixels, pixels))
    load = find_runtime(LatencyConfig(runtime=name, latency_batch=2)).load_thin(model, graph, images)
    for seed in range(2):
        keep = {name: kept.numpy() for name, kept in random_keep(graph, seed, None).items()}
        program = load(keep)
        with torch.inference_mode():
            expected = slice_model(model, graph, keep)(images).numpy()
        np.testing.assert_allclose(program.run(), expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    profile = program.profile(3)
    weighted = [operator.weight for operator in profile if operator.weight]
    layers = [f"{n}.weight" for n, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert sorted(weighted) == sorted(set(weighted))
    assert set(weighted) <= set(layers)
    assert len(weighted) > 0.9 * len(layers)
    assert all(operator.milliseconds >= 0 for operator in profile)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("model_name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in REST)])
def test_networks_without_blocks_and_for_other_images_are_cut_out_too(monkeypatch, model_name):
    """What is exported: the network for each image size, and two thin ones for the first."""
    need("onnxruntime")
    from eagleeye_hf.runtimes import onnx_slices

    exports, export = [], onnx_slices.export_proto
    monkeypatch.setattr(onnx_slices, "export_proto", lambda *args: exports.append(args) or export(*args))
    model, pixels = make_known(model_name), 32 if "cifar" in model_name else 64
    graph, runtime = trace_model(model, (3, pixels, pixels)), find_runtime(LatencyConfig(runtime="onnxruntime"))
    for size in (pixels, pixels + 32):
        images = torch.randn(1, 3, size, size)
        load = runtime.load_thin(model, graph, images)
        made = len(exports)
        for seed in range(2):
            keep = {name: kept.numpy() for name, kept in random_keep(graph, seed, None).items()}
            blocks = random_blocks(graph, seed)
            found = load(keep, blocks).run()
            with torch.inference_mode():
                expected = slice_model(model, graph, keep, blocks)(images).numpy()
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
        assert len(exports) == made, "a thin network was exported"
    assert len(exports) <= 2 + onnx_slices.PROBES


def test_a_block_whose_nodes_are_not_told_apart_is_refused():
    """Its nodes have no notes; or what they compute is read in two places."""
    onnx = pytest.importorskip("onnx")
    from eagleeye_hf.runtimes.onnx_blocks import SCOPES, leave_out

    def make(notes: dict[str, str]):
        nodes = [onnx.helper.make_node("Relu", [a], [b]) for a, b in ("xa", "ab", "bc", "cd")]
        nodes.append(onnx.helper.make_node("Add", ["d", "b"], ["e"]))
        for node in nodes:
            if node.output[0] in notes:
                node.metadata_props.add(key=SCOPES, value=str(["", notes[node.output[0]]]))
        values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xe"]
        return onnx.helper.make_graph(nodes, "graph", values[:1], values[1:])

    for notes in ({}, {"b": "block", "c": "block", "a": "stem", "d": "head", "e": "head"}):
        with pytest.raises(ValueError, match="block can't be told from the rest"):
            leave_out(make(notes), ["block"])
    graph = make({"a": "stem", "c": "block", "d": "head", "e": "head"})
    leave_out(graph, ["block"])
    assert [(list(node.input), list(node.output)) for node in graph.node] == [
        (["x"], ["a"]), (["a"], ["b"]), (["b"], ["d"]), (["d", "b"], ["e"])
    ]  # fmt: skip  # a node without a note before the block stays
    graph = make({"a": "stem", "c": "block", "e": "head", "d": "block"})
    leave_out(graph, ["block"])
    assert [list(node.input) for node in graph.node] == [["x"], ["a"], ["b", "b"]]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", ON_CPU)
def test_a_profile_adds_up_to_the_whole(name):
    """A layer with a hundred times the work of another takes most of the time, wherever it stands."""
    need(name)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 192, 5), nn.Conv2d(192, 8, 5), nn.ReLU()).eval()
    program = find_runtime(LatencyConfig(runtime=name)).load_thin(
        model, trace_model(model, (3, 64, 64)), torch.randn(1, 3, 64, 64)
    )({})
    took = {operator.weight: operator.milliseconds for operator in program.profile(5) if operator.weight}
    assert set(took) == {"0.weight", "2.weight", "3.weight"}
    assert took["2.weight"] + took["3.weight"] > took["0.weight"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_compiled_programs_run_and_are_profiled():
    model = make_model("resnet20_cifar")
    images = torch.randn(1, 3, 32, 32)
    program = find_runtime(LatencyConfig(runtime="compile")).load(model, images)
    with torch.inference_mode():
        torch.testing.assert_close(program.run(), model(images), rtol=1e-4, atol=1e-4)
    profile = program.profile(3)
    assert sum(bool(operator.weight) for operator in profile) >= 20
    assert sum(operator.milliseconds for operator in profile) > 0


def test_the_default_is_onnx_runtime_where_it_is_installed(monkeypatch):
    pytest.importorskip("onnxruntime")
    found = find_runtime(LatencyConfig(threads=3))
    assert (found.place.runtime, found.place.threads, found.place.batch_size) == ("onnxruntime", 3, 1)
    assert str(found.place).startswith("ONNX Runtime on CPU (")
    assert str(found.place).endswith("), 3 threads")
    monkeypatch.setattr(runtimes, "is_installed", lambda name: False)
    assert find_runtime(LatencyConfig()).place.runtime == "torch"


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    monkeypatch.delitem(__import__("sys").modules, "eagleeye_hf.runtimes.openvino_runtime", raising=False)
    with pytest.raises(
        EagleEyeError, match=r"`runtime=openvino` needs openvino; .*pip install eagleeye-hf\[openvino\]"
    ):
        find_runtime(LatencyConfig(runtime="openvino"))
    pytest.importorskip("onnxruntime")
    with pytest.raises(EagleEyeError, match=r"`runtime=tensorrt` needs TensorrtExecutionProvider, which this ONNX"):
        find_runtime(LatencyConfig(runtime="tensorrt"))
    with pytest.raises(EagleEyeError, match=r"`int8` is for runtime onnxruntime or openvino; got `runtime=torch`"):
        LatencyConfig(runtime="torch", int8=True)


def test_weights_are_found_by_order_and_by_their_filled_up_shapes():
    weights = [("a", (24, 3, 3, 3)), ("b", (40, 24, 1, 1)), ("c", (10, 40))]
    multiplying = [True, False, True, True]
    assert assign_weights(multiplying, None, weights) == ["a", "", "b", "c"]
    swapped = [(40, 32, 1, 1), None, (32, 3, 3, 3), None]
    assert assign_weights(multiplying, swapped, weights) == ["b", "", "a", "c"]


@pytest.mark.filterwarnings("ignore:Specified provider")
@pytest.mark.parametrize("name", ["onnxruntime-cuda", "tensorrt"])
def test_a_provider_that_does_not_start_is_told(monkeypatch, name):
    """ONNX Runtime would go on with another one, and its milliseconds would be the CPU's."""
    onnxruntime = pytest.importorskip("onnxruntime")
    listed = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: listed)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    runtime = find_runtime(LatencyConfig(runtime=name), "cuda")
    with pytest.raises(EagleEyeError, match=f"`runtime={name}`: .* did not start, and ONNX Runtime took CPUExec"):
        runtime.load(make_model("resnet20_cifar"), torch.randn(1, 3, 32, 32))


def test_onnx_runtime_goes_by_the_precision_that_the_network_has_now():
    pytest.importorskip("onnxruntime")
    runtime = find_runtime(LatencyConfig(runtime="onnxruntime"), "cpu")
    model, images = make_model("resnet20_cifar"), torch.randn(1, 3, 32, 32)
    assert runtime.load(model, images).run().dtype == np.float32
    assert runtime.load(model.half(), images).run().dtype == np.float16
    for load in (runtime.load, lambda model, images: runtime.load_thin(model, trace_model(model), images)):
        with pytest.raises(EagleEyeError, match="`runtime=onnxruntime` has no convolutions in bfloat16; give"):
            load(model.bfloat16(), images)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ["torch", "onnxruntime-cuda", "tensorrt"])
def test_programs_on_a_gpu(name):
    """They compute what the sliced model does, their layers are timed, and the alignment is found."""
    device = torch.device("cuda")
    model = make_model("resnet20_cifar")
    graph, images = trace_model(model), torch.randn(1, 3, 32, 32)
    keep = {name: kept.numpy() for name, kept in random_keep(graph, 0).items()}
    try:
        runtime = find_runtime(LatencyConfig(runtime=name), device)
        model.to(runtime.device)
        program = runtime.load_thin(model, graph, images)(keep)
    except EagleEyeError as error:
        if name == "torch":  # which is always there
            raise
        pytest.skip(str(error))
    program.run()
    profile = program.profile(5)
    assert sum(bool(operator.weight) for operator in profile) >= 20
    assert sum(operator.milliseconds for operator in profile) > 0
    assert 1 <= measure_alignment(runtime) <= 32
    if name == "torch":
        with torch.inference_mode():
            expected = slice_model(model, graph, keep)(images.to(device))
        torch.testing.assert_close(program.run(), expected)


SIGNALS = """
import faulthandler, os, signal, torch
from torch import nn
from eagleeye_hf.runtimes.config import LatencyConfig
from eagleeye_hf.runtimes.runtime import find_runtime

faulthandler.enable()  # as pytest does: signals have a stack of their own
seen = []
signal.signal(signal.SIGUSR1, lambda *_: seen.append(1))
runtime, images = find_runtime(LatencyConfig(runtime="openvino", threads=1)), torch.randn(1, 3, 8, 8)
programs = [runtime.load(nn.Conv2d(3, 8, 3).eval(), images) for _ in range(2)]
while programs:
    programs.pop(0)  # the first goes first
os.kill(os.getpid(), signal.SIGUSR1)
print(len(seen))
"""


def test_signals_still_arrive_after_programs_are_gone():
    """OpenVINO lends the process a stack for signals; freed too early, the next signal ends the process."""
    need("openvino")
    command = [sys.executable, "-W", "ignore", "-c", SIGNALS]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr[-2000:]
