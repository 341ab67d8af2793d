import pytest
import torch
from torch import nn

from eagleeye_hf import EagleEyeError
from eagleeye_hf.runtimes import latency
from eagleeye_hf.runtimes.config import LatencyConfig
from eagleeye_hf.runtimes.runtime import find_runtime


def test_milliseconds_are_of_the_given_models():
    small, large = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 512, 7, padding=3)
    times = latency.measure_latency([small, large], (3, 64, 64), rounds=3)
    assert len(times) == 2
    assert min(times) > 0
    assert small.training


@pytest.mark.parametrize("runtime", ["torch", "onnxruntime"])
def test_a_measurement_says_where_it_was_made(runtime):
    if runtime == "onnxruntime":
        pytest.importorskip("onnxruntime")
    small, large = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 512, 7, padding=3)
    kind = find_runtime(LatencyConfig(runtime=runtime, latency_batch=2))
    (found,) = latency.compare_latency(large, [small], (3, 64, 64), kind, rounds=3)
    assert found.milliseconds > 0
    assert found.full_ms > 0
    assert (found.place.runtime, found.place.threads, found.place.batch_size) == (runtime, torch.get_num_threads(), 2)
    assert latency.Latency.from_dict(found.to_dict()) == found
    title = {"torch": "PyTorch", "onnxruntime": "ONNX Runtime"}[runtime]
    assert str(found.place).startswith(f"{title} on CPU (")
    assert large.training


def test_an_unknown_runtime_is_refused():
    with pytest.raises(EagleEyeError, match=r"`runtime` is one of auto, torch, compile, onnxruntime, .*; got 'tflite'"):
        latency.measure_latency([nn.Conv2d(3, 4, 1)], (3, 8, 8), "tflite")
