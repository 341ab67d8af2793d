import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from eagleeye_hf import EagleEyeError, choose_channels, slice_model, trace_model
from eagleeye_hf.pruning.importance import filter_effects
from tests.helpers import make_model, random_keep


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 6, 1, bias=False)
        self.bn = nn.BatchNorm2d(6)
        self.b = nn.Conv2d(6, 4, 1)

    def forward(self, x):
        return self.b(self.bn(self.a(x)))


def test_l1_keeps_the_largest_filters():
    model = Two()
    with torch.no_grad():
        model.a.weight.copy_(torch.tensor([3.0, -9.0, 1.0, 5.0, -2.0, 7.0])[:, None, None, None].expand(6, 3, 1, 1))
    graph = trace_model(model, (3, 8, 8))
    assert choose_channels(model, graph, [3, 4])["a"].tolist() == [1, 3, 5]
    with torch.no_grad():
        model.bn.weight.copy_(torch.tensor([6.0, 5.0, -4.0, 3.0, 2.0, 1.0]))
    assert choose_channels(model, graph, [2, 4], "bn_scale")["a"].tolist() == [0, 1]


@pytest.mark.parametrize("criterion", ["l1", "l2", "bn_scale", "geometric_median"])
def test_every_criterion_gives_the_asked_widths(criterion):
    model = make_model("mobilenetv3_large_100")
    graph = trace_model(model, (3, 64, 64))
    widths = [max(1, len(g.units) // 2) * g.step if g.prunable else g.channels for g in graph.groups]
    if criterion == "bn_scale":
        with pytest.raises(EagleEyeError, match="nothing to go by in group"):  # SE layers have no BatchNorm
            choose_channels(model, graph, widths, criterion)
        return
    keep = choose_channels(model, graph, widths, criterion)
    for group, width in zip(graph.groups, widths, strict=True):
        if width < group.channels:
            assert len(keep[group.name]) == width
            assert keep[group.name].tolist() == sorted(set(keep[group.name].tolist()))


def test_the_input_is_untouched_and_nothing_is_shared():
    model = make_model("resnet18")
    graph = trace_model(model, (3, 64, 64))
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    thin = slice_model(model, graph, random_keep(graph, 0))
    for tensor in thin.state_dict().values():
        tensor.zero_()
    for key, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[key])


def test_wrong_channels_are_refused():
    model = make_model("regnety_002")
    graph = trace_model(model, (3, 64, 64))
    for keep, message in (
        ({"nothing": [0]}, "no channel group"),
        ({graph.groups[-1].name: [0, 1]}, "can't be pruned"),
        ({"stem.conv": [1, 0]}, "ascending"),
        ({"stem.conv": []}, "at least one"),
        ({"stem.conv": [0, 99]}, "from 0 to 31"),
    ):
        with pytest.raises(EagleEyeError, match=message):
            slice_model(model, graph, keep)
    stepped = next(group for group in graph.prunable if group.step > 1)
    with pytest.raises(EagleEyeError, match="go together by"):
        slice_model(model, graph, {stepped.name: [0]})
    with pytest.raises(EagleEyeError, match="is unknown; choose one of"):
        choose_channels(model, graph, graph.widths, "magic")
    with pytest.raises(EagleEyeError, match="one integer per group"):
        choose_channels(model, graph, [1])


def test_taylor_is_the_squared_slope_of_the_loss_along_each_filter():
    """The oracle scales a filter by 1 +- epsilon, in float64."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 4)).double().eval()
    images, labels = torch.randn(5, 3, 8, 8, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 0])
    expected = []
    for channel in range(6):
        losses = []
        for epsilon in (1e-4, -1e-4):
            scaled = copy.deepcopy(model)
            with torch.no_grad():
                scaled[0].weight[channel] *= 1 + epsilon
                losses.append(nn.functional.cross_entropy(scaled(images), labels).item())
        expected.append(((losses[0] - losses[1]) / 2e-4) ** 2)
    found = filter_effects(model, [(images, labels)], {("0.weight", 0)})["0.weight", 0]
    assert found == pytest.approx(expected, rel=1e-3)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_taylor_and_random_choose_whole_widths():
    model = make_model("resnet20_cifar")
    graph = trace_model(model)
    widths = [g.channels // 2 if g.prunable else g.channels for g in graph.groups]
    batches = [(torch.randn(8, 3, 32, 32), torch.randint(0, 10, (8,)))]
    taylor = choose_channels(model, graph, widths, "taylor", batches=batches)
    first, same, other = (choose_channels(model, graph, widths, "random", seed=seed) for seed in (0, 0, 1))
    for group, width in zip(graph.groups, widths, strict=True):
        if group.prunable:
            assert len(taylor[group.name]) == len(first[group.name]) == width
            assert torch.equal(first[group.name], same[group.name])
    assert any(not torch.equal(first[name], other[name]) for name in first)
    with pytest.raises(EagleEyeError, match="needs `batches`"):
        choose_channels(model, graph, widths, "taylor")


def test_importance_goes_by_the_layers_that_produce_channels():
    """A transposed convolution holds its outputs along the second dimension; weight_norm's direction has no scale."""
    block = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.BatchNorm2d(16)]
    up = nn.ConvTranspose2d(16, 8, 2, 2)
    model = nn.Sequential(*block, up, nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 64, 5)).eval()
    with torch.no_grad():
        model[2].weight.copy_(torch.arange(10, 26.0)[:, None, None, None].expand_as(model[2].weight))
        up.weight.copy_(torch.arange(200, 40, -10.0)[:, None, None, None] * torch.arange(1, 9.0)[None, :, None, None])
    graph = trace_model(model, (3, 8, 8))
    widths = [group.channels // 2 if group.prunable else group.channels for group in graph.groups]
    keep = choose_channels(model, graph, widths)
    assert keep["2"].tolist() == [*range(8, 16)]
    assert keep["4"].tolist() == [*range(4, 8)]
    batches = [(torch.randn(4, 3, 8, 8), torch.arange(4))]
    taylor = choose_channels(model, graph, widths, "taylor", batches=batches)
    assert {name: len(kept) for name, kept in taylor.items()} == {name: len(kept) for name, kept in keep.items()}

    layer = parametrizations.weight_norm(nn.Conv2d(3, 8, 3))
    with torch.no_grad():
        layer.parametrizations.weight.original0.copy_(torch.arange(1, 9.0)[:, None, None, None])
    normed = nn.Sequential(layer, nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(64, 5)).eval()
    graph = trace_model(normed, (3, 8, 8))
    widths = [4 if group.name.startswith("0") else group.channels for group in graph.groups]
    (kept,) = choose_channels(normed, graph, widths).values()
    assert kept.tolist() == layer.weight.detach().flatten(1).abs().sum(1).topk(4).indices.sort().values.tolist()
