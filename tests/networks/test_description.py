"""What a network says of itself, wrapped or not, whatever its config tells."""

import copy

import pytest
import timm
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from eagleeye_hf import choose_channels, from_pretrained, save_pretrained, slice_model, trace_model
from eagleeye_hf.networks.description import describe_model, unwrap_model
from eagleeye_hf.networks.running import evaluation_mode
from tests.helpers import make_model

WRAPPERS = {"compile": torch.compile, "DataParallel": nn.DataParallel, "AveragedModel": AveragedModel}


@pytest.mark.parametrize(
    "wrap", [*WRAPPERS.values(), lambda m: torch.compile(nn.DataParallel(m))], ids=[*WRAPPERS, "2"]
)
def test_wrappers_hide_nothing(wrap, tmp_path):
    model = make_model("resnet20_cifar")
    wrapped = wrap(model)
    assert describe_model(wrapped) == describe_model(model)
    graph = trace_model(wrapped)
    assert graph.to_json() == trace_model(model).to_json()
    widths = [group.channels // 2 if group.prunable else group.channels for group in graph.groups]
    keep = choose_channels(wrapped, graph, widths)
    thin, images = slice_model(wrapped, graph, keep), torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        expected = slice_model(model, graph, keep)(images)
        torch.testing.assert_close(thin(images), expected)
        saved = save_pretrained(nn.DataParallel(thin), tmp_path / "thin")
        torch.testing.assert_close(from_pretrained(saved)(images), expected)


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050", "resnet20_cifar"])
def test_tensors_tell_the_channels(name, channels):
    model = timm.create_model(name, in_chans=channels, num_classes=7)
    described = describe_model(model)
    assert described.input_size == (channels, *model.pretrained_cfg["input_size"][1:])
    assert (len(described.mean), len(described.std), described.num_classes) == (channels, channels, 7)
    assert trace_model(model, (channels, 64, 64)).input_size[0] == channels


def test_a_stem_that_folds_pixels_reads_three_channels():
    assert describe_model(timm.create_model("tresnet_m")).channels == 3


def test_dtype_and_outputs_are_those_of_the_tensors():
    model = timm.create_model("resnet18", num_classes=10).half()
    model.num_classes = 1000  # somebody else's word
    described = describe_model(model)
    assert (described.dtype, described.num_classes) == (torch.float16, 10)
    assert described.device == torch.device("cpu")
    assert unwrap_model(model) is model


def test_modes_come_back_even_after_an_error():
    model = timm.create_model("resnet18").train()
    model.layer1.eval()
    before = {name: module.training for name, module in model.named_modules()}
    with evaluation_mode(model, copy.deepcopy(model)):
        assert not any(module.training for module in model.modules())
    assert {name: module.training for name, module in model.named_modules()} == before
    with pytest.raises(RuntimeError), evaluation_mode(model):
        model(torch.ones(1))
    assert {name: module.training for name, module in model.named_modules()} == before
