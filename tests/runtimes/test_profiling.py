"""Latency models and alignments, fitted to runtimes whose laws are known."""

import json
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from scipy.stats import spearmanr

from eagleeye_hf import Budget, sample_strategies, trace_model
from eagleeye_hf.channels.cost import strategy_rows
from eagleeye_hf.channels.removal import is_removed
from eagleeye_hf.pruning.importance import Importance
from eagleeye_hf.runtimes import alignment, latency, profiling
from eagleeye_hf.runtimes.latency_model import LatencyModel
from eagleeye_hf.runtimes.runtime import OperatorTime, Place
from tests.helpers import make_model


class Law:
    """A runtime whose convolutions take what their channels, filled up to a multiple, are worth, give or take noise.

    Args:
        padded: the multiple.
        overhead: of profiling, milliseconds per operator.
        odd: extra time, as a fraction, of channels that are no multiple.
        launch: milliseconds per operator, whatever the image size.
    """

    def __init__(
        self, padded: int, noise: float = 0.0, overhead: float = 0.0, odd: float = 0.0, launch: float = 0.0
    ) -> None:
        self.padded, self.noise, self.overhead, self.odd, self.launch = padded, noise, overhead, odd, launch
        self.loads = 0
        self.device = torch.device("cpu")
        self.place = Place(runtime="onnxruntime", device=f"law of {padded}", threads=1)
        self.random = np.random.default_rng(0)

    def load_thin(self, model, graph, images):
        tensors = dict(model.named_parameters())
        weights = [name for name, tensor in tensors.items() if tensor.ndim >= 2]

        pixels = (images.shape[-1] / graph.image_size) ** 2

        def load(keep, removed_blocks=()):
            self.loads += 1
            sizes = {name: list(tensors[name].shape) for name in weights if not is_removed(name, removed_blocks)}
            for group in graph.groups:
                for member in group.members if group.name in keep else ():
                    if member.tensor in sizes:
                        lost = group.channels - len(keep[group.name])
                        sizes[member.tensor][member.dim] -= lost * member.index.shape[1]
            return Fake(self, {name: self.launch + pixels * self.milliseconds(size) for name, size in sizes.items()})

        return load

    def milliseconds(self, size: list[int]) -> float:
        out, inner = (-(-channels // self.padded) * self.padded for channels in size[:2])
        extra = 1 + self.odd * (size[0] % self.padded != 0)
        if size[1] == 1 and len(size) > 2:  # depthwise
            return 0.01 + 2e-4 * out * extra
        return 0.02 + 1e-5 * out * inner * int(np.prod(size[2:])) * extra

    def disturb(self, value: float) -> float:
        return value * (1 + abs(self.random.normal(0, self.noise)))


class Fake:
    def __init__(self, law: Law, layers: dict[str, float]) -> None:
        self.law, self.layers = law, layers

    def run(self):
        return None

    def profile(self, rounds):
        each = [
            OperatorTime(name=n, kind="Conv", milliseconds=self.law.disturb(ms) + self.law.overhead, weight=n)
            for n, ms in self.layers.items()
        ]
        relu = OperatorTime(name="relu", kind="Relu", milliseconds=0.001)
        return [each[0], relu, *each[1:]]


@pytest.fixture(autouse=True)
def no_clock(monkeypatch, tmp_path):
    def take_turns(programs, rounds):
        return [[p.law.disturb(sum(p.layers.values())) for _ in range(rounds)] for p in programs]

    for module in (profiling, alignment):
        monkeypatch.setattr(module, "take_turns", take_turns)
    monkeypatch.setattr(profiling, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(alignment, "cache_folder", lambda: tmp_path)


@pytest.fixture(scope="module")
def network():
    model = make_model("mobilenetv1_100")
    return model, trace_model(model, (3, 64, 64))


@pytest.mark.parametrize(("padded", "overhead"), [(1, 0.0), (8, 0.0), (16, 0.01)])
def test_the_model_predicts_and_ranks_sub_nets_that_it_never_saw(network, padded, overhead):
    model, graph = network
    law, importance = Law(padded, noise=0.03, overhead=overhead), Importance(model, graph)
    fitted = profiling.fit_latency(model, graph, importance, law, divisor=4)
    strategies = sample_strategies(graph, Budget(macs=0.5), 21, seed=9, divisor=4)[1:]
    load = law.load_thin(model, graph, torch.empty(1, *graph.input_size))
    truth = np.array([sum(load(importance.choose(s.widths)).layers.values()) for s in strategies])
    predicted = fitted.predict(graph, np.array([s.widths for s in strategies]))
    assert np.mean(np.abs(predicted / truth - 1)) < 0.02
    assert spearmanr(predicted, truth).statistic > 0.9
    assert fitted.error < 0.03
    assert fitted.full_ms == pytest.approx(sum(load({}).layers.values()), rel=0.02)
    assert LatencyModel.from_dict(json.loads(json.dumps(fitted.to_dict()))) == fitted


@pytest.mark.parametrize("budgets", [[], [Budget(latency=0.4)]])
def test_fewer_layers_and_smaller_images_are_predicted_too(budgets):
    """Each layer is launched, which takes as long for small images, and profiled, which takes time of its own."""
    model, sizes = make_model("resnet56_cifar"), (16, 24)
    graph, importance = trace_model(model, image_sizes=sizes), Importance(model, trace_model(model))
    law, how = Law(1, noise=0.02, overhead=0.02, launch=0.015), ("width", "depth", "size")
    fitted = profiling.fit_latency(
        model, graph, importance, law, divisor=8, dimensions=how, spared=("layer1.0",), budgets=budgets
    )
    drawn = sample_strategies(graph, Budget(latency=0.4), 30, seed=5, divisor=8, latency=fitted, dimensions=how)[1:]
    truth = []
    for strategy in drawn:
        size = strategy.image_size or graph.image_size
        load = law.load_thin(model, graph, torch.empty(1, 3, size, size))
        truth.append(sum(load(importance.choose(strategy.widths), strategy.removed_blocks).layers.values()))
    predicted = fitted.predict(graph, strategy_rows(graph, drawn))
    assert {strategy.image_size for strategy in drawn} == {None, *sizes}
    assert np.abs(predicted / truth - 1).max() < 0.04


def test_another_algorithm_for_some_sizes_is_noticed_where_it_is_clear(network, monkeypatch):
    """Layers of middling width take a quarter longer, which no sum of products can say."""
    model, graph = network
    smooth = Law.milliseconds

    def jumpy(law, size):
        return smooth(law, size) * (1.25 if size[0] > 300 and 300 < size[1] < 420 else 1.0)

    monkeypatch.setattr(Law, "milliseconds", jumpy)
    law, importance = Law(1, noise=0.01), Importance(model, graph)
    fitted = profiling.fit_latency(model, graph, importance, law, divisor=4)
    corrected = [layer for layer in fitted.layers if layer.correction is not None]
    assert corrected
    assert all(layer.correction.full[1] > 300 for layer in corrected)
    assert fitted.error < 0.03
    assert LatencyModel.from_dict(json.loads(json.dumps(fitted.to_dict()))) == fitted


def test_layers_are_fitted_once_and_used_again_for_the_same_network_and_place(network, capsys):
    model, graph = network
    importance = Importance(model, graph)
    first = Law(8)
    fitted = profiling.fit_latency(model, graph, importance, first, divisor=8)
    assert first.loads > 60
    again = Law(8)
    same = profiling.fit_latency(model, graph, importance, again, divisor=8)
    assert again.loads == 1  # the full network, measured anew
    assert same.layers[0].coefficients == pytest.approx(fitted.layers[0].coefficients)
    assert "layers as fitted before" in capsys.readouterr().err
    elsewhere = Law(16)  # another device
    profiling.fit_latency(model, graph, importance, elsewhere, divisor=8)
    assert elsewhere.loads > 60


@pytest.mark.parametrize("parts", [(0.5,), (0.35, 0.5, 0.65)])
def test_budgets_are_met_where_the_whole_is_no_sum_of_its_layers(network, monkeypatch, parts):
    """Half of the full network's milliseconds are half of what was measured, not of what layers add up to."""
    model, graph = network
    law, importance = Law(8), Importance(model, graph)

    def caches(programs, rounds):
        return [[sum(p.layers.values()) ** 1.3] * rounds for p in programs]

    monkeypatch.setattr(profiling, "take_turns", caches)
    budgets = [Budget(latency=part) for part in parts]
    fitted = profiling.fit_latency(model, graph, importance, law, divisor=8, budgets=budgets)
    load = law.load_thin(model, graph, torch.empty(1, *graph.input_size))
    (whole,) = caches([load({})], 1)[0]
    for part, budget in zip(parts, budgets, strict=True):
        for strategy in sample_strategies(graph, budget, 10, divisor=8, latency=fitted)[1:]:
            (taken,) = caches([load(importance.choose(strategy.widths))], 1)[0]
            assert taken / whole == pytest.approx(part, abs=0.015)


@pytest.mark.parametrize("padded", [1, 4, 8, 16])
def test_the_alignment_is_the_smallest_multiple_that_costs_nothing(padded, capsys):
    law = Law(padded, noise=0.01, odd=0.3)
    assert alignment.measure_alignment(law) == padded
    assert f"likes multiples of {padded} channels" in capsys.readouterr().err
    loads = law.loads
    assert alignment.measure_alignment(law) == padded
    assert law.loads == loads, "it is remembered"


def test_on_a_gpu_it_suits_half_precision(capsys):
    law = Law(2, noise=0.01, odd=0.3)
    law.place = replace(law.place, threads=0)
    assert alignment.measure_alignment(law) == alignment.LEAST_ON_GPU


def test_a_cache_that_was_damaged_is_measured_anew(tmp_path):
    law = Law(8, odd=0.3)
    assert alignment.measure_alignment(law) == 8
    (tmp_path / "alignment.json").write_text('{"x": 3')
    assert alignment.measure_alignment(law) == 8


def test_turns_warm_the_caches_of_quick_programs_only(monkeypatch):
    class Sleeper:
        def __init__(self, ms):
            self.ms, self.runs = ms, 0

        def run(self):
            self.runs += 1
            clock[0] += self.ms / 1000

    clock = [0.0]
    monkeypatch.setattr(latency.time, "perf_counter", lambda: clock[0])
    quick, slow = Sleeper(1.0), Sleeper(50.0)
    times = latency.take_turns([quick, slow], 4)
    assert [len(turns) for turns in times] == [4, 4]
    assert times[0] == pytest.approx([1.0] * 4)
    assert slow.runs == 4 + latency.WARM_UP
    assert quick.runs == 2 * (4 + latency.WARM_UP) - 1


def test_a_network_without_depthwise_layers_and_with_tied_groups():
    model = timm.create_model("resnet20_cifar").eval()
    graph = trace_model(model)
    law, importance = Law(8, noise=0.02), Importance(model, graph)
    fitted = profiling.fit_latency(model, graph, importance, law, divisor=8)
    assert fitted.error < 0.03
    widths = np.array([graph.widths])
    assert fitted.predict(graph, widths)[0] == pytest.approx(fitted.full_ms, rel=0.02)
