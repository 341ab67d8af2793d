import numpy as np
import pytest
import timm
from torch import nn

from eagleeye_hf import choose_channels, sample_strategies, slice_model, trace_model
from eagleeye_hf.pruning.importance import Importance
from eagleeye_hf.runtimes import latency as room
from eagleeye_hf.strategies.budget import Budget


def test_the_model_of_milliseconds_predicts_networks_it_has_not_seen(monkeypatch):
    """Measurements are replaced by a law of weights and channels, with noise."""
    model = timm.create_model("resnet20_cifar").eval()
    graph = trace_model(model)
    random = np.random.default_rng(0)

    def law(network: nn.Module) -> float:
        own = trace_model(network, graph.input_size)
        return 3 + sum(p.numel() for p in network.parameters()) / 1e5 + sum(own.widths) / 1e3

    noisy = lambda models, *_, **__: [law(network) * random.normal(1, 0.01) for network in models]  # noqa: E731
    monkeypatch.setattr(room, "measure_latency", noisy)
    fitted = room.fit_latency(model, graph, Importance(model, graph))
    assert fitted.full_ms == pytest.approx(law(model), rel=0.03)
    assert fitted.error < 0.03
    for strategy in sample_strategies(graph, Budget(macs=0.5), 5)[1:]:
        thin = slice_model(model, graph, choose_channels(model, graph, strategy.widths))
        predicted = fitted.predict(graph, np.array([strategy.widths]))[0]
        assert predicted == pytest.approx(law(thin), rel=0.05)


def test_milliseconds_are_of_the_given_models():
    small, large = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 512, 7, padding=3)
    fast, slow = room.measure_latency([small, large], (3, 64, 64), rounds=3, pick=min)
    assert 0 < fast < slow
    assert small.training
