import copy
from dataclasses import dataclass

import pytest
import timm
import torch
from torch import nn
from torch.nn.utils import prune
from torch.utils.flop_counter import FlopCounterMode

from eagleeye_hf import ChannelGraph, EagleEyeError, count_cost, slice_model, trace_model
from tests.helpers import make_model, random_keep, silence, strategy_of

# (name, input pixels, share of convolutions that must shrink); a representative of each family
ZOO = [
    ("resnet18", 64, 1.0),
    ("resnet50", 64, 1.0),
    ("resnext50_32x4d", 64, 1.0),
    ("seresnet50", 64, 1.0),
    ("ecaresnet26t", 64, 0.5),
    ("resnetblur50", 64, 1.0),
    ("resnetv2_50", 64, 1.0),
    ("resnest14d", 64, 1.0),
    ("res2net50_26w_4s", 64, 1.0),
    ("skresnet18", 64, 1.0),
    ("mobilenetv1_100", 64, 1.0),
    ("mobilenetv2_100", 64, 1.0),
    ("mobilenetv3_large_100", 64, 1.0),
    ("mobilenetv4_conv_small", 64, 1.0),
    ("efficientnet_lite0", 64, 1.0),
    ("efficientnet_b0", 64, 1.0),
    ("tf_efficientnet_cc_b0_4e", 64, 1.0),
    ("mixnet_s", 64, 1.0),
    ("ghostnet_100", 64, 1.0),
    ("regnetx_002", 64, 1.0),
    ("regnety_002", 64, 1.0),
    ("repvgg_a0", 64, 1.0),
    ("mobileone_s0", 64, 1.0),
    ("repghostnet_050", 64, 1.0),
    ("fastvit_t8", 64, 1.0),
    ("vgg11_bn", 64, 1.0),
    ("densenet121", 64, 1.0),
    ("dla34", 64, 1.0),
    ("dpn48b", 64, 1.0),
    ("hrnet_w18_small", 64, 1.0),
    ("ese_vovnet19b_dw", 64, 1.0),
    ("hgnetv2_b0", 64, 1.0),
    ("cspresnet50", 64, 1.0),
    ("cs3darknet_s", 64, 1.0),
    ("selecsls42b", 64, 1.0),
    ("xception41", 96, 1.0),
    ("inception_v3", 96, 1.0),
    ("rexnet_100", 64, 1.0),
    ("convmixer_768_32", 64, 1.0),
    ("inception_next_atto", 64, 0.9),
    ("lowformer_b0", 64, 0.5),
    ("efficientformerv2_s0", 224, 0.9),
    ("levit_128", 224, 0.9),
    ("coatnet_pico_rw_224", 224, 0.5),
    ("resnet20_cifar", 32, 1.0),
]


def relative_error(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize(("name", "pixels", "share"), ZOO, ids=[name for name, *_ in ZOO])
def test_slicing_equals_silencing(name, pixels, share):
    """A sliced model computes what the full one does when nothing reads the removed channels."""
    model = make_model(name).double()
    graph = trace_model(model, input_size=(3, pixels, pixels))
    images = torch.randn(2, 3, pixels, pixels, dtype=torch.float64)
    for seed, ratio in ((0, 0.5), (1, None)):
        keep = random_keep(graph, seed, ratio)
        thin = slice_model(model, graph, keep)
        with torch.inference_mode():
            expected = silence(model, graph, keep)(images)
            assert relative_error(thin(images), expected) < 1e-9
            assert relative_error(model(images), expected) > 1e-3, "the removed channels made no difference"
        assert type(thin) is type(model)
        widths = [len(keep.get(group.name, range(group.channels))) for group in graph.groups]
        assert count_cost(graph, widths).params == sum(p.numel() for p in thin.parameters())
    convs = {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d) or type(m).__name__ == "CondConv2d"}
    modules = dict(thin.named_modules())
    shrunk = sum(modules[n].weight.numel() < m.weight.numel() for n, m in convs.items())
    assert shrunk / len(convs) >= share


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_large_100", "regnety_002", "densenet121", "vgg11_bn"])
def test_macs_equal_pytorchs_own_count(name):
    model = make_model(name)
    graph = trace_model(model, (3, 96, 96))
    keep = random_keep(graph, 3, None)
    thin = slice_model(model, graph, keep)
    widths = [len(keep.get(group.name, range(group.channels))) for group in graph.groups]
    for network, expected in ((model, graph.widths), (thin, widths)):
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            network(torch.randn(1, 3, 96, 96))
        assert 2 * count_cost(graph, expected).macs == counter.get_total_flops()


def test_known_costs():
    graph = trace_model(timm.create_model("mobilenetv1_100"))
    assert len(graph.prunable) == 14
    assert count_cost(graph, graph.widths) == (568_740_352, 4_231_976)
    assert len(trace_model(timm.create_model("resnet50")).prunable) == 37


def test_many_candidates_cost_what_each_costs():
    graph = trace_model(timm.create_model("regnety_002"), (3, 64, 64))
    rows = [[len(random_keep(graph, s, None).get(g.name, range(g.channels))) for g in graph.groups] for s in range(20)]
    together = count_cost(graph, rows)
    assert [(int(m), int(p)) for m, p in zip(together.macs, together.params, strict=True)] == [
        tuple(count_cost(graph, row)) for row in rows
    ]


def test_the_graph_survives_json():
    model = make_model("res2net50_26w_4s")
    graph = trace_model(model, (3, 64, 64))
    again = ChannelGraph.from_json(graph.to_json())
    assert [(g.name, g.channels, g.step, g.reason) for g in again.groups] == [
        (g.name, g.channels, g.step, g.reason) for g in graph.groups
    ]
    keep = random_keep(graph, 0)
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(slice_model(model, again, keep)(images), slice_model(model, graph, keep)(images))
    assert count_cost(again, again.widths) == count_cost(graph, graph.widths)
    with pytest.raises(EagleEyeError, match="not a channel graph"):
        ChannelGraph.from_json('{"format": 99}')


def test_tracing_changes_nothing():
    model = make_model("resnet18").train()
    before = copy.deepcopy(model.state_dict())
    trace_model(model, (3, 64, 64))
    assert model.training
    assert not any(parameter.is_meta for parameter in model.parameters())
    for key, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[key])


@pytest.mark.parametrize("name", ["resnet50", "mobilenetv3_large_100", "densenet121", "resnet20_cifar"])
def test_a_sliced_model_tells_the_truth_about_itself(name):
    model = make_model(name)
    pixels = model.pretrained_cfg["input_size"][-1]
    graph = trace_model(model, (3, pixels, pixels))
    thin = slice_model(model, graph, random_keep(graph, 0))
    images = torch.randn(2, 3, pixels, pixels)
    with torch.inference_mode():
        features = thin.forward_features(images)
        assert features.shape[1] == thin.num_features < model.num_features
        assert thin.forward_head(features).shape == (2, model.num_classes)
        assert thin.get_classifier().in_features == thin.head_hidden_size
    channels = {}
    for info in thin.feature_info:
        module = thin.get_submodule(info["module"])
        module.register_forward_hook(lambda m, i, o, key=info["module"]: channels.update({key: o.shape[1]}))
    thin(images)
    assert [info["num_chs"] for info in thin.feature_info] == [channels[info["module"]] for info in thin.feature_info]
    for module in thin.modules():
        if isinstance(module, nn.Conv2d):
            assert module.weight.shape[:2] == (module.out_channels, module.in_channels // module.groups)
        elif isinstance(module, nn.BatchNorm2d):
            assert module.num_features == len(module.running_mean)
    thin.reset_classifier(7)
    assert thin(images).shape == (2, 7)
    thin.train()(images).sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in thin.parameters())


def test_what_has_no_rule_is_pinned_with_a_reason():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Conv2d(3, 8, 3)
            self.b = nn.Conv2d(8, 8, 3)
            self.bn = nn.BatchNorm2d(8)
            self.fc = nn.Linear(8, 4)

        def forward(self, x):
            x = self.bn(self.b(torch.fft.fft(self.a(x), dim=1).real))
            return self.fc(x.mean((2, 3)))

    graph = trace_model(Odd(), (3, 16, 16))
    groups = {group.name: group for group in graph.groups}
    assert "no rule" in groups["a"].reason
    assert groups["b"].prunable


class Folded(nn.Module):
    """Channels folded into the batch, as efficient channel attention has them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.each, self.head = nn.Conv2d(3, 16, 3), nn.Conv2d(1, 1, 3, padding=1), nn.Linear(16, 5)

    def forward(self, x):
        x = self.stem(x).relu()
        b, c, h, w = x.shape
        return self.head(self.each(x.reshape(b * c, 1, h, w)).reshape(b, c, h, w).mean((2, 3)))


def test_macs_of_channels_that_are_folded_into_the_batch_go_with_them():
    model = Folded().eval()
    graph = trace_model(model, (3, 16, 16))
    assert [group.name for group in graph.prunable] == ["stem"]
    keep = random_keep(graph, 0)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        slice_model(model, graph, keep)(torch.randn(1, 3, 16, 16))
    assert 2 * count_cost(graph, strategy_of(graph, keep)).macs == counter.get_total_flops()


@dataclass
class Answer:
    logits: torch.Tensor


def test_outputs_in_a_dataclass_stay_and_others_are_refused():
    class Answering(nn.Module):
        def __init__(self, kind) -> None:
            super().__init__()
            self.stem, self.head, self.kind = nn.Conv2d(3, 16, 3), nn.Linear(16, 10), kind

        def forward(self, x):
            return self.kind(self.head(self.stem(x).relu().mean((2, 3))))

    graph = trace_model(Answering(Answer), (3, 8, 8))
    assert {group.name: group.reason for group in graph.groups} == {"stem": "", "head": "carries the model's output"}
    with pytest.raises(EagleEyeError, match="its output, a map, holds no tensor that is known of"):
        trace_model(Answering(lambda x: map(str, x)), (3, 8, 8))


def test_bad_input_is_one_clear_error():
    with pytest.raises(EagleEyeError, match=r"`input_size` is \(channels, height, width\)"):
        trace_model(timm.create_model("resnet18"), (224, 224))
    with pytest.raises(EagleEyeError, match="can't be traced at `input_size="):
        trace_model(nn.Linear(4, 2), (3, 8, 8))


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda m: torch.nn.utils.spectral_norm(m.layer1[0].conv1), "layer1.0.conv1.weight"),
        (lambda m: prune.l1_unstructured(m.layer1[0].conv1, "weight", 0.3), "layer1.0.conv1.weight"),
        (lambda m: m.layer3.register_forward_hook(lambda module, i, o: setattr(module, "kept", o)), "layer3.kept"),
    ],
    ids=["spectral_norm", "prune", "kept activation"],
)
def test_what_can_not_be_copied_is_named(change, name):
    model = timm.create_model("resnet20_cifar")
    change(model)
    model(torch.randn(2, 3, 32, 32))
    with pytest.raises(EagleEyeError, match=f"`model` can't be copied: {name} is computed .* `prune.remove`"):
        trace_model(model)


def test_an_error_without_a_message_in_a_models_code_is_told():
    class Asserts(nn.Sequential):
        def forward(self, x):
            if self[0](x).shape[1] != 16:
                raise AssertionError  # as a bare `assert` does
            return super().forward(x).mean((2, 3))

    graph = trace_model(Asserts(nn.Conv2d(3, 16, 1), nn.BatchNorm2d(16), nn.Conv2d(16, 8, 1)), (3, 8, 8))
    assert graph.groups[0].reason == "removing channels breaks the model: AssertionError"
    with pytest.raises(EagleEyeError, match=r"can't be traced at `input_size=\(3, 8, 8\)`: AssertionError$"):
        trace_model(Asserts(nn.Conv2d(3, 7, 1)), (3, 8, 8))
