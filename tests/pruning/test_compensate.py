import copy

import numpy as np
import pytest
import torch
from torch import nn

from eagleeye_hf import EagleEyeError, slice_model, trace_model
from eagleeye_hf.pruning.compensate import RIDGE, collect_moments, compensate_readers, find_readers
from tests.helpers import make_model, random_keep


class Three(nn.Module):
    """A producer, a reader followed by BatchNorm, a reader with a bias."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.b = nn.Conv2d(8, 6, 1, bias=False)
        self.bn = nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        return self.head(self.bn(self.b(self.a(x).relu())).relu().mean((2, 3)))


def example():
    torch.manual_seed(0)
    model = Three().eval()
    graph = trace_model(model, (3, 10, 10))
    batches = [torch.randn(n, 3, 10, 10) for n in (5, 3)]
    keep = {"a": np.array([0, 2, 5]), "b": np.array([1, 2, 4])}
    return model, graph, batches, keep


def lstsq(inputs, kept, removed):
    """Regression of the removed channels on the kept ones and a constant, by explicit rows; ridge as extra rows."""
    x, y = inputs[:, kept].double(), inputs[:, removed].double()
    ridge = RIDGE * (inputs - inputs.mean(0)).double().square().mean(0).mean() * len(x)
    x = torch.cat([x, torch.ones(len(x), 1, dtype=torch.float64)], 1)
    extra = torch.cat([ridge.sqrt() * torch.eye(len(kept), dtype=torch.float64), torch.zeros(len(kept), 1)], 1)
    solution = torch.linalg.lstsq(torch.cat([x, extra]), torch.cat([y, torch.zeros(len(kept), y.shape[1])])).solution
    return solution[:-1], solution[-1]


def test_readers_are_repaired_as_lstsq_on_the_activations_says():
    model, graph, batches, keep = example()
    changed = compensate_readers(model, graph, keep, collect_moments(model, graph, batches))
    images = torch.cat(batches)
    with torch.no_grad():
        pixels = model.a(images).relu().movedim(1, -1).reshape(-1, 8)
        features = model.bn(model.b(model.a(images).relu())).relu().mean((2, 3))
    kept, removed = [0, 2, 5], [1, 3, 4, 6, 7]
    mixing, _ = lstsq(pixels, kept, removed)
    weight = model.b.weight.detach()
    expected = weight[:, kept, 0, 0] + weight[:, removed, 0, 0] @ mixing.float().T
    torch.testing.assert_close(changed["b.weight"][:, kept, 0, 0], expected, rtol=1e-4, atol=1e-5)
    kept, removed = [1, 2, 4], [0, 3, 5]
    mixing, offset = lstsq(features, kept, removed)
    head = model.head.weight.detach()
    torch.testing.assert_close(
        changed["head.weight"][:, kept], head[:, kept] + head[:, removed] @ mixing.float().T, rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(
        changed["head.bias"], model.head.bias + head[:, removed] @ offset.float(), rtol=1e-4, atol=1e-5
    )


class InGroups(nn.Module):
    """A convolution in two groups, each of which loses the channel at the same place."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 12, 3, padding=1)
        self.b = nn.Conv2d(12, 8, 1, groups=2)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.b(self.a(x).relu()).mean((2, 3)))


def test_each_group_of_a_convolution_is_repaired_by_its_own_channels():
    torch.manual_seed(0)
    model, images = InGroups().eval(), torch.randn(6, 3, 10, 10)
    graph = trace_model(model, (3, 10, 10))
    kept, removed = [0, 2, 5], [1, 3, 4]
    keep = {"a": np.array([*kept, *(6 + place for place in kept)])}
    changed = compensate_readers(model, graph, keep, collect_moments(model, graph, [images]))
    with torch.no_grad():
        pixels = model.a(images).relu().movedim(1, -1).reshape(-1, 12)
    weight = model.b.weight.detach()[:, :, 0, 0]
    for part, inputs in ((slice(4), pixels[:, :6]), (slice(4, 8), pixels[:, 6:])):
        mixing, offset = lstsq(inputs, kept, removed)
        expected = weight[part][:, kept] + weight[part][:, removed] @ mixing.float().T
        torch.testing.assert_close(changed["b.weight"][part][:, kept, 0, 0], expected, rtol=1e-4, atol=1e-5)
        expected = model.b.bias[part] + weight[part][:, removed] @ offset.float()
        torch.testing.assert_close(changed["b.bias"][part], expected, rtol=1e-4, atol=1e-5)


def test_what_hardly_varies_is_not_asked_to_tell_of_the_rest():
    """One group keeps channels that are all but constant; fitted to rounding, its weights would be a million times as
    large."""
    torch.manual_seed(0)
    model, images = InGroups().eval(), torch.randn(6, 3, 10, 10)
    with torch.no_grad():
        model.a.weight[[6, 8]] *= 1e-6
        model.a.bias[[6, 8]] = 0.5
    graph = trace_model(model, (3, 10, 10))
    keep = {"a": np.array([0, 2, 6, 8])}
    changed = compensate_readers(model, graph, keep, collect_moments(model, graph, [images]))
    assert changed["b.weight"].abs().max() < 10 * model.b.weight.abs().max()


class Odd(nn.Module):
    """A weight that two layers share, a layer that is called by keyword, and a class of a shape of its own."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.first, self.second = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.second.weight = self.first.weight
        self.named, self.own, self.head = nn.Conv2d(8, 8, 1), ChannelsFirst(8, 8), nn.Linear(8, 4)

    def forward(self, x):
        x = self.stem(x).relu()
        x = self.named(input=self.second(self.first(x).relu()).relu())
        return self.head(self.own(x.relu()).mean((2, 3)))


class ChannelsFirst(nn.Linear):
    def forward(self, x):
        return nn.functional.conv2d(x, self.weight[:, :, None, None], self.bias)


def test_layers_that_are_not_what_they_seem_are_left_as_they_are():
    torch.manual_seed(0)
    model, images = Odd().eval(), torch.randn(4, 3, 10, 10)
    graph = trace_model(model, (3, 10, 10))
    assert find_readers(model, graph) == ["named", "head"]
    assert set(collect_moments(model, graph, [images])) == {"named", "head"}


def test_channels_that_repeat_others_are_removed_without_a_trace():
    model, graph, batches, _ = example()
    with torch.no_grad():
        for tensor in (model.a.weight, model.a.bias):
            tensor[4:] = tensor[:4] * 0.5
    keep = {"a": np.array([0, 1, 2, 3])}
    changed = compensate_readers(model, graph, keep, collect_moments(model, graph, batches))
    thin = slice_model(model, graph, keep)
    with torch.no_grad():
        thin.b.weight.copy_(changed["b.weight"][:, :4])
        torch.testing.assert_close(thin(batches[0]), model(batches[0]), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("name", ["mobilenetv3_large_100", "densenet121", "resnext26ts", "regnetx_002"])
def test_every_architecture_keeps_its_shapes(name):
    model = make_model(name)
    graph = trace_model(model, (3, 64, 64))
    keep = random_keep(graph, 0)
    moments = collect_moments(model, graph, [torch.randn(4, 3, 64, 64)])
    assert set(moments) == set(find_readers(model, graph))
    changed = compensate_readers(model, graph, keep, moments)
    tensors = dict(model.named_parameters())
    assert changed
    for key, tensor in changed.items():
        assert tensor.shape == tensors[key].shape
        assert torch.isfinite(tensor).all()


def test_no_images():
    model, graph, _, _ = example()
    with pytest.raises(EagleEyeError, match="`batches` is empty"):
        collect_moments(model, graph, [])


def test_threads_are_what_they_were_when_the_last_of_many_is_done():
    from concurrent.futures import ThreadPoolExecutor
    from time import sleep

    from eagleeye_hf.networks.threads import one_thread

    def work(seconds: float) -> int:
        with one_thread():
            sleep(seconds)
            return torch.get_num_threads()

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(work, [0.05, 0.01, 0.03, 0.02] * 3)) == [1] * 12
            assert torch.get_num_threads() == 3
            assert pool.submit(torch.get_num_threads).result() in (1, 3)
        with ThreadPoolExecutor(1) as fresh:
            assert fresh.submit(torch.get_num_threads).result() == 3
    finally:
        torch.set_num_threads(before)


class Gated(nn.Module):
    """A reader without bias for each place that a constant may go to."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU())
        self.normed, self.norm = nn.Conv2d(16, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.added = nn.Conv2d(16, 8, 1, bias=False)
        self.late, self.late_norm = nn.Conv2d(8, 16, 1, bias=False), nn.BatchNorm2d(16)
        self.squeeze, self.excite = nn.Linear(16, 8, bias=False), nn.Linear(8, 16, bias=False)
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        x = self.stem(x)
        x = self.norm(self.normed(x) + self.added(x)).relu()
        x = self.late_norm(self.late(x).relu())
        gate = self.excite(self.squeeze(x.mean((2, 3))).relu()).sigmoid()
        return self.head((x * gate[:, :, None, None]).mean((2, 3)))


def test_a_constant_is_part_of_the_fit_where_a_batchnorm_takes_it_out():
    torch.manual_seed(0)
    model = Gated().eval()
    before = copy.deepcopy(model.state_dict())
    graph = trace_model(model, (3, 12, 12))
    moments = collect_moments(model, graph, [torch.randn(6, 3, 12, 12)])
    told = {name: moment.constant for name, moment in moments.items()}
    expected = {"normed": True, "added": True, "late": False, "squeeze": False, "excite": False, "head": True}
    assert told == expected
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_gate_that_loses_inputs_is_repaired_as_well_as_without_a_constant():
    torch.manual_seed(0)
    model = Gated().eval()
    graph, images = trace_model(model, (3, 12, 12)), [torch.randn(64, 3, 12, 12)]
    keep = {"late": np.arange(5)}
    changed = compensate_readers(model, graph, keep, collect_moments(model, graph, images))
    with torch.no_grad():
        x = model.norm(model.normed(stem := model.stem(images[0])) + model.added(stem)).relu()
        pooled = model.late_norm(model.late(x).relu()).mean((2, 3))
        wanted = pooled @ model.squeeze.weight.T
        kept, gone = pooled[:, :5], model.squeeze.weight[:, 5:]
        best = torch.linalg.lstsq(kept.double(), pooled[:, 5:].double()).solution.float()
        expected = kept @ (model.squeeze.weight[:, :5] + gone @ best.T).T
        found = kept @ changed["squeeze.weight"][:, :5].T
    errors = [float((made - wanted).square().mean()) for made in (found, expected)]
    assert errors[0] < 1.05 * errors[1]
