"""The criterion that knows of repair: beside least squares on the images themselves."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from eagleeye_hf import EagleEyeError, choose_channels, trace_model
from eagleeye_hf.pruning.compensate import collect_moments
from eagleeye_hf.pruning.importance import Importance
from eagleeye_hf.pruning.reconstruction import Inverses, Reader, find_group_readers, invert, make_readers, removal_costs
from tests.helpers import make_model


class Chain(nn.Module):
    """A convolution whose outputs depend on each other, and two layers that read them."""

    def __init__(self, channels: int = 6) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, channels, 1)
        self.left, self.right = nn.Conv2d(channels, 4, 1), nn.Conv2d(channels, 2, 1)
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        y = torch.tanh(self.first(x))
        return self.head(torch.cat([self.left(y), self.right(y)], 1).mean((2, 3)))


def residuals(inputs: np.ndarray, weight: np.ndarray, removed: list[int]) -> float:
    """The relative squared error of a reader without some inputs, its weights and bias fitted anew."""
    kept = [c for c in range(inputs.shape[1]) if c not in removed]
    known = np.hstack([inputs[:, kept], np.ones((len(inputs), 1))])
    wanted = inputs @ weight.T
    error = wanted - known @ np.linalg.lstsq(known, wanted, rcond=None)[0]
    return float(np.square(error).sum() / np.square(wanted - wanted.mean(0)).sum())


@pytest.fixture
def chain():
    torch.manual_seed(0)
    model, images = Chain(), torch.randn(8, 3, 16, 16)
    with torch.no_grad():
        given = torch.tanh(model.first(images)).movedim(1, -1).reshape(-1, 6).double().numpy()
    graph = trace_model(model, (3, 16, 16))
    number = next(n for n, group in enumerate(graph.groups) if group.name.startswith("first"))
    return model.eval(), graph, number, images, given


def read(weight, products, columns) -> Reader:
    return make_readers(weight, products[None], invert(products[None]), columns)[0]


def total(readers) -> np.ndarray:
    return torch.stack([reader.costs() for reader in readers]).sum(0).numpy()


def test_costs_are_what_least_squares_leave(chain):
    model, graph, number, images, given = chain
    moments = collect_moments(model, graph, [images])
    readers = find_group_readers(dict(model.named_parameters()), graph, number, Inverses(graph, moments))
    weights = [getattr(model, name).weight.detach().double().flatten(1).numpy() for name in ("left", "right")]
    assert len(readers) == 2

    def error(removed):
        return sum(residuals(given, weight, removed) for weight in weights)

    assert total(readers) == pytest.approx([error([channel]) for channel in range(6)], rel=2e-2, abs=1e-4)
    for reader in readers:
        reader.remove(torch.tensor([1, 4]))
    expected = [error([1, 4, channel]) - error([1, 4]) for channel in (0, 2, 3, 5)]
    assert total(readers) == pytest.approx(expected, rel=2e-2, abs=1e-4)


def test_units_of_several_channels_beside_others_that_stay():
    """A kernel of four taps that reads three units of two channels each, and three channels of another group."""
    random = np.random.default_rng(0)
    data = random.normal(size=(4000, 9)) @ random.normal(size=(9, 9))
    kernel = torch.from_numpy(random.normal(size=(5, 9, 2, 2)))
    columns = np.array([[0, 4], [7, 2], [8, 3]])
    products = torch.from_numpy(np.cov(data.T, bias=True))
    reader = read(kernel, products, torch.from_numpy(columns))
    rows = kernel.permute(0, 2, 3, 1).reshape(-1, 9).numpy()  # each tap reads the same inputs
    errors = {
        gone: residuals(data, rows, list(columns[list(gone)].ravel())) for gone in ((0,), (1,), (2,), (0, 1), (1, 2))
    }
    assert reader.costs().numpy() == pytest.approx([errors[0,], errors[1,], errors[2,]], rel=1e-2)
    reader.remove(torch.tensor([1]))
    assert reader.costs().numpy() == pytest.approx([errors[0, 1] - errors[1,], errors[1, 2] - errors[1,]], rel=1e-2)


def test_a_reader_that_can_store_no_constant_is_fitted_without_one():
    random = np.random.default_rng(0)
    data, weight = 3 + random.normal(size=(4000, 5)), random.normal(size=(4, 5))
    reader = read(torch.from_numpy(weight), torch.from_numpy(data.T @ data / 4000), torch.arange(5)[:, None])
    wanted = data @ weight.T
    for gone, cost in enumerate(reader.costs().tolist()):
        known = np.delete(data, gone, axis=1)
        error = wanted - known @ np.linalg.lstsq(known, wanted, rcond=None)[0]
        assert cost == pytest.approx(np.square(error).sum() / np.square(wanted).sum(), rel=2e-2)


def test_a_convolution_in_groups_errs_by_the_sum_of_its_groups():
    random = np.random.default_rng(0)
    data = random.normal(size=(4000, 10)) @ random.normal(size=(10, 10))
    data, weight = data - data.mean(0), random.normal(size=(6, 5))
    inputs, products = (
        (data[:, :5], data[:, 5:]),
        torch.from_numpy(np.stack([np.cov(data[:, :5].T), np.cov(data[:, 5:].T)])),
    )
    readers = make_readers(torch.from_numpy(weight), products, invert(products), torch.arange(5)[:, None])
    assert len(readers) == 2
    wanted = [own @ weight[3 * place : 3 * place + 3].T for place, own in enumerate(inputs)]
    for gone, cost in enumerate(total(readers)):
        error = 0.0
        for own, outputs in zip(inputs, wanted, strict=True):
            known = np.delete(own, gone, axis=1)
            error += np.square(outputs - known @ np.linalg.lstsq(known, outputs, rcond=None)[0]).sum()
        assert cost == pytest.approx(error / sum(np.square(outputs).sum() for outputs in wanted), rel=2e-2)


def test_moments_that_rounding_has_spoilt_get_a_larger_ridge_and_others_none():
    sound = torch.eye(3, dtype=torch.float64) + 0.5
    spoilt = torch.diag(torch.tensor([1.0, 1.0, -1e-3], dtype=torch.float64))
    inverses = invert(torch.stack([sound, spoilt]))
    assert inverses.isfinite().all()
    torch.testing.assert_close(inverses[:1], invert(sound[None]), rtol=0, atol=0)


def test_channels_go_greedily_and_the_rest_can_tell_most_of_what_is_gone(chain):
    model, graph, number, images, given = chain
    importance = Importance(model, graph, "reconstruction", [images])
    scores = importance.unit_scores(number)
    order = list(np.argsort(scores))
    weights = [getattr(model, name).weight.detach().double().flatten(1).numpy() for name in ("left", "right")]
    removed: list[int] = []
    for channel in order[:-1]:
        left = [c for c in range(6) if c not in removed]
        errors = {c: sum(residuals(given, w, [*removed, c]) for w in weights) for c in left}
        assert errors[channel] <= 1.02 * min(errors.values()) + 1e-3
        removed.append(int(channel))
    best = min(
        itertools.combinations(range(6), 3), key=lambda gone: sum(residuals(given, w, list(gone)) for w in weights)
    )
    assert sum(residuals(given, w, removed[:3]) for w in weights) <= 2 * sum(
        residuals(given, w, list(best)) for w in weights
    )


def test_chunks_of_channels_that_go_together_are_read_by_several_layers():
    """Res2Net: a unit is a channel of each of eight chunks, and the same column of seven layers."""
    model = make_model("res2net50_14w_8s")
    graph = trace_model(model, (3, 64, 64))
    number = next(n for n, group in enumerate(graph.groups) if group.name == "layer1.1.conv1")
    known = Inverses(graph, collect_moments(model, graph, [torch.randn(2, 3, 64, 64)]))
    readers = find_group_readers(dict(model.named_parameters()), graph, number, known)
    assert [reader.num_columns for reader in readers] == [1] * 7 + [7]  # the last one's outputs are another group


@pytest.mark.parametrize("name", ["resnet20_cifar", "mobilenetv3_small_050", "ghostnet_050", "regnetx_002"])
def test_every_group_of_a_network_is_scored(name):
    model, images = make_model(name), torch.randn(2, 3, 64, 64)
    graph = trace_model(model, (3, 64, 64))
    importance = Importance(model, graph, "reconstruction", [images])
    for number, group in enumerate(graph.groups):
        if group.prunable:
            scores = importance.unit_scores(number)
            assert scores.shape == (len(group.units),)
            assert np.isfinite(scores).all()
            assert len(set(scores)) > 1
    if "classifier" in dict(model.named_children()):  # a class of timm's own
        assert "classifier" in collect_moments(model, graph, [images])
    widths = [max(group.step, group.channels // 2 // group.step * group.step) for group in graph.groups]
    widths = [w if group.prunable else group.channels for w, group in zip(widths, graph.groups, strict=True)]
    keep = choose_channels(model, graph, widths, "reconstruction", batches=[images])
    for group, width in zip(graph.groups, widths, strict=True):
        if width < group.channels:
            assert len(keep[group.name]) == width


def test_many_units_go_several_at_a_time():
    random = np.random.default_rng(0)
    data = torch.from_numpy(random.normal(size=(4000, 300)) @ random.normal(size=(300, 300)))
    weight = torch.from_numpy(random.normal(size=(20, 300)))
    reader = read(weight, data.T @ data / len(data), torch.arange(300)[:, None])
    first = reader.costs().numpy()
    costs = removal_costs([reader], 300)
    assert set(np.argsort(costs)[:4]) == set(np.argsort(first)[:4])
    assert np.sort(costs)[:4] == pytest.approx(np.sort(first)[:4])


def test_without_images_it_is_refused():
    model = make_model("resnet18")
    graph = trace_model(model, (3, 64, 64))
    with pytest.raises(EagleEyeError, match="criterion='reconstruction'` needs `batches`: images, for what layers"):
        choose_channels(model, graph, graph.widths, "reconstruction")
    half = [group.channels // 2 if group.prunable else group.channels for group in graph.groups]
    with pytest.raises(EagleEyeError, match="`batches` is empty"):
        choose_channels(model, graph, half, "reconstruction", batches=[])


def test_what_is_not_finite_is_ranked_by_l1_and_said(capsys):
    """Statistics that are broken are recomputed later, so the network is no lost one."""
    model = make_model("resnet20_cifar")
    graph, images = trace_model(model), [torch.randn(4, 3, 32, 32)]
    half = [group.channels // 2 if group.prunable else group.channels for group in graph.groups]
    expected = choose_channels(model, graph, half)
    model.layer1[0].bn1.running_var.fill_(float("nan"))  # all that comes after is no number, either
    keep = choose_channels(model, graph, half, "reconstruction", batches=images)
    del keep["conv1"]  # a layer before the damage reads it, too
    assert all(torch.equal(kept, expected[name]) for name, kept in keep.items())
    told = capsys.readouterr().err
    assert "warning: what layer1.0.conv2 and " in told
    assert "other layers read is not finite in the full network, so channels there stay by `criterion=l1`" in told


class OwnType(nn.Module):
    """Code that insists on a type."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.gate, self.head = nn.Conv2d(8, 8, 1, bias=False), nn.Linear(8, 4)

    def forward(self, x):
        x = torch.relu(self.norm(self.conv(x.float())))
        return self.head((x * torch.sigmoid(self.gate(x))).mean((2, 3)))


def test_a_network_that_runs_in_one_type_alone_is_ranked():
    torch.manual_seed(0)
    model = OwnType().eval()
    graph, images = trace_model(model, (3, 16, 16)), torch.randn(8, 3, 16, 16)
    moments = collect_moments(model, graph, [images])
    assert not moments["gate"].constant
    half = [group.channels // 2 if group.prunable else group.channels for group in graph.groups]
    assert choose_channels(model, graph, half, "reconstruction", batches=[images])


def test_all_processes_keep_the_channels_of_the_main_one(chain, monkeypatch):
    """Where sums over images differ in the last digit, ties would fall differently from device to device."""
    model, graph, number, images, _ = chain
    importance = Importance(model, graph, "reconstruction", [images])
    own = importance.unit_scores(number)
    importance = Importance(model, graph, "reconstruction", [images])
    monkeypatch.setattr(
        "eagleeye_hf.pruning.importance.make_in_main", lambda _, make: {n: -scores for n, scores in make().items()}
    )
    importance.prepare(SimpleNamespace(num_processes=2))
    np.testing.assert_array_equal(importance.unit_scores(number), -own)
    widths = tuple(group.channels - (place == number) for place, group in enumerate(graph.groups))
    kept = importance.choose(widths)[graph.groups[number].name]
    assert int(np.argmax(own)) not in kept
