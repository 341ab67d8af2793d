import numpy as np
import pytest
import timm
import torch
from torch import nn

from eagleeye_hf import EagleEyeError, choose_channels, sample_strategies, slice_model, trace_model
from eagleeye_hf.pruning.importance import Importance
from eagleeye_hf.runtimes import latency, latency_model
from eagleeye_hf.strategies.budget import Budget


def test_the_model_of_milliseconds_predicts_networks_it_has_not_seen(monkeypatch):
    """Measurements are replaced by a law of weights and channels, with noise."""
    model = timm.create_model("resnet20_cifar").eval()
    graph = trace_model(model)
    random = np.random.default_rng(0)

    def law(network: nn.Module) -> float:
        widths = trace_model(network, graph.input_size).widths
        return 3 + sum(p.numel() for p in network.parameters()) / 1e5 + sum(widths) / 1e3

    noisy = lambda models, *_, **__: [law(network) * random.normal(1, 0.01) for network in models]  # noqa: E731
    monkeypatch.setattr(latency_model, "measure_latency", noisy)
    fitted = latency_model.fit_latency(model, graph, Importance(model, graph))
    assert fitted.full_ms == pytest.approx(law(model), rel=0.03)
    assert fitted.error < 0.03
    for strategy in sample_strategies(graph, Budget(macs=0.5), 5)[1:]:
        thin = slice_model(model, graph, choose_channels(model, graph, strategy.widths))
        predicted = fitted.predict(graph, np.array([strategy.widths]))[0]
        assert predicted == pytest.approx(law(thin), rel=0.05)


def test_milliseconds_are_of_the_given_models():
    small, large = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 512, 7, padding=3)
    fast, slow = latency.measure_latency([small, large], (3, 64, 64), rounds=3)
    assert 0 < fast < slow
    assert small.training


@pytest.mark.parametrize("runtime", ["torch", "onnxruntime"])
def test_a_measurement_says_where_it_was_made(runtime):
    if runtime == "onnxruntime":
        pytest.importorskip("onnxruntime")
    small, large = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 512, 7, padding=3)
    (found,) = latency.compare_latency(large, [small], (3, 64, 64), runtime, rounds=3)
    assert 0 < found.milliseconds < found.full_ms
    assert (found.runtime, found.threads, found.batch_size) == (runtime, torch.get_num_threads(), 1)
    assert latency.Latency.from_dict(found.to_dict()) == found
    title = {"torch": "PyTorch", "onnxruntime": "ONNX Runtime"}[runtime]
    assert found.place.startswith(f"{title} on CPU (")
    assert large.training


def test_an_unknown_runtime_is_refused():
    with pytest.raises(EagleEyeError, match="`runtime=tensorrt` is unknown; choose torch or onnxruntime"):
        latency.measure_latency([nn.Conv2d(3, 4, 1)], (3, 8, 8), "tensorrt")
