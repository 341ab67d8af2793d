"""Blocks: the network without one computes what the full one does when that block's branch adds zero."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from eagleeye_hf import EagleEyeError, count_cost, slice_model, trace_model
from tests.helpers import make_model, random_blocks, random_keep, silence, silence_blocks, strategy_of

# (name, input pixels, blocks that can go)
QUICK = [
    ("resnet18", 64, 5),
    ("resnet50", 64, 12),
    ("ecaresnet26t", 64, 4),
    ("mobilenetv2_100", 64, 10),
    ("mobilenetv3_large_100", 64, 10),
    ("mobilenetv4_conv_small", 64, 10),
    ("efficientnet_lite0", 64, 9),
    ("mnasnet_100", 64, 10),
    ("fbnetc_100", 64, 15),
    ("regnetx_002", 64, 9),
    ("regnety_002", 64, 9),
    ("fastvit_t8", 64, 10),
    ("repvit_m0_9", 64, 0),
    ("convmixer_768_32", 64, 32),
    ("resnet20_cifar", 32, 7),
]
OTHERS = [
    ("resnext50_32x4d", 64, 12),
    ("seresnet50", 64, 12),
    ("resnetrs50", 64, 12),
    ("resnetv2_50", 64, 12),
    ("res2net50_26w_4s", 64, 12),
    ("skresnet18", 64, 5),
    ("resnest14d", 64, 0),
    ("efficientnet_b0", 64, 9),
    ("repvgg_a0", 64, 0),
    ("mobileone_s0", 64, 0),
    ("hrnet_w18_small", 64, 18),
    ("coatnet_pico_rw_224", 224, 8),
]
FAMILIES = [pytest.param(*row, id=row[0]) for row in QUICK]
FAMILIES += [pytest.param(*row, id=row[0], marks=pytest.mark.slow) for row in OTHERS]


def relative_error(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize(("name", "pixels", "number"), FAMILIES)
def test_a_network_without_blocks_is_the_full_one_whose_branches_add_zero(name, pixels, number):
    model = make_model(name).double()
    graph = trace_model(model, (3, pixels, pixels))
    assert len(graph.removable) == number
    images = torch.randn(2, 3, pixels, pixels, dtype=torch.float64)
    every = [block.name for block in graph.removable]
    for keep, removed in (({}, every[:1]), ({}, every), (random_keep(graph, 0, None), random_blocks(graph, 0))):
        thin = slice_model(model, graph, keep, removed)
        with torch.inference_mode():
            expected = silence_blocks(silence(model, graph, keep), graph, removed)(images)
            assert relative_error(thin(images), expected) < 1e-9
        cost = count_cost(graph, strategy_of(graph, keep, removed))
        assert cost.params == sum(p.numel() for p in thin.parameters())
        assert cost.macs == count_cost(*_traced(thin, pixels)).macs


def _traced(model, pixels):
    graph = trace_model(model, (3, pixels, pixels))
    return graph, graph.widths


def test_macs_without_blocks_and_at_another_size_equal_pytorchs_own_count():
    model = make_model("mobilenetv3_small_100")
    graph = trace_model(model, (3, 96, 96), image_sizes=(64,))
    keep, removed = random_keep(graph, 3, None), random_blocks(graph, 3)
    thin = slice_model(model, graph, keep, removed)
    for pixels in (96, 64):
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            thin(torch.randn(1, 3, pixels, pixels))
        assert 2 * count_cost(graph, strategy_of(graph, keep, removed, pixels)).macs == counter.get_total_flops()


class Residual(nn.Module):
    def __init__(self, after: nn.Module, twice: bool = False) -> None:
        super().__init__()
        self.conv, self.bn, self.after, self.twice = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), after, twice

    def forward(self, x):
        x = self.after(x + self.bn(self.conv(x)))
        return self.after(x + self.bn(self.conv(x))) if self.twice else x


@pytest.mark.parametrize(
    ("before", "after", "removable"),
    [
        (nn.ReLU(), nn.ReLU(), True),
        (nn.Identity(), nn.ReLU(), False),  # what is negative would change
        (nn.ReLU6(), nn.ReLU6(), True),
        (nn.ReLU(), nn.ReLU6(), False),  # what is above 6 would
        (nn.Identity(), nn.Identity(), True),
        (nn.ReLU(), nn.GELU(), False),
        (nn.Sigmoid(), nn.Hardtanh(0, 1), True),
    ],
)
def test_an_activation_after_the_sum_must_leave_its_input_as_it_is(before, after, removable):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), before, Residual(after), nn.Flatten(), nn.Linear(4 * 64, 2))
    graph = trace_model(model, (3, 8, 8))
    assert [block.removable for block in graph.blocks] == [removable]
    assert removable or graph.blocks[0].reason == "its output is not its input when its branch adds zero"


def test_a_module_that_runs_several_times_or_adds_twice_is_judged_as_a_whole():
    block = Residual(nn.ReLU())
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), block, block, nn.Flatten(), nn.Linear(4 * 64, 2))
    (found,) = trace_model(model, (3, 8, 8)).blocks
    assert found.reason == "it runs several times"
    model[2] = model[3] = Residual(nn.ReLU(), twice=True)
    model[3] = nn.Identity()
    graph = trace_model(model, (3, 8, 8))
    assert [block.name for block in graph.removable] == ["2"]
    thin = slice_model(model.eval(), graph, {}, ["2"])
    assert isinstance(thin[2], nn.Identity)
    assert isinstance(model[2], Residual), "the input is untouched"


def test_wrong_blocks_are_refused():
    graph, model = trace_model(make_model("resnet18"), (3, 64, 64)), make_model("resnet18")
    for removed, message in (
        (["layer9"], r"'layer9' is no block of this network; those that can go: layer1.0, layer1.1, layer2.1"),
        (["layer2.0"], "layer2.0 can't go .its output has another shape than its input"),
        ("layer1.0", "is a collection of names; got the text"),
    ):
        with pytest.raises(EagleEyeError, match=message):
            slice_model(model, graph, {}, removed)


class InPlace(nn.Module):
    """A residual around residuals whose activation writes into what it is given."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.body = nn.Sequential(Residual(nn.Identity()), Residual(nn.Identity()))
        self.act, self.head = nn.ReLU(inplace=inplace), nn.Linear(4, 2)

    def forward(self, x):
        x = self.stem(x)
        return self.head((x + self.act(self.body(x))).mean((2, 3)))


@pytest.mark.parametrize("inplace", [False, True])
def test_what_a_removed_block_passes_on_is_not_written_into(inplace):
    graph = trace_model(InPlace(inplace), (3, 8, 8))
    assert [block.reason for block in graph.blocks if not block.removable] == (
        ["removing it breaks the model: what it passes on is written in place, and read once more"] * inplace * 2
    )
    assert len(graph.blocks) == 2


class Aliased(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 4, 1), nn.Linear(4, 2)
        first, second = Residual(nn.Identity()), Residual(nn.Identity())
        self.body = nn.Sequential(first, second)
        if how == "name":
            self.first = first
        elif how == "list":
            self.order = [second]
        elif how == "layer":
            second.conv = first.conv

    def forward(self, x):
        return self.head(self.body(self.stem(x)).mean((2, 3)))


@pytest.mark.parametrize(("how", "num"), [("", 2), ("name", 1), ("list", 1), ("layer", 0)])
def test_a_block_that_is_reached_by_another_name_stays(how, num):
    graph = trace_model(Aliased(how), (3, 8, 8))
    assert len(graph.removable) == num
    others = [block for block in graph.blocks if not block.removable]
    assert all(block.reason == "it, or a part of it, is reached by another name, too" for block in others)


def test_a_branch_that_is_scaled_when_added_is_no_identity():
    class Scaled(Residual):
        def forward(self, x):
            return torch.add(self.bn(self.conv(x)), x, alpha=0.5)

    model = nn.Sequential(nn.Conv2d(3, 4, 1), Scaled(nn.Identity()), nn.Flatten(), nn.Linear(4 * 64, 2))
    assert not trace_model(model, (3, 8, 8)).removable
