import pytest
import torch

from eagleeye_hf import slice_model, trace_model
from eagleeye_hf.channels.refill import RefilledModel
from tests.helpers import make_model, random_keep


@pytest.mark.parametrize("name", ["resnet20_cifar", "mobilenetv3_large_100", "regnety_002", "levit_128s"])
def test_a_refilled_model_is_the_sliced_model(name):
    model = make_model(name)
    size = 32 if "cifar" in name else 224 if "levit" in name else 64
    graph = trace_model(model, (3, size, size))
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    refilled = RefilledModel(model, graph)
    images = torch.randn(2, 3, size, size)
    for seed in (0, 1, 2):  # each fill undoes the last, whatever was wider or thinner
        keep = {name: kept.numpy() for name, kept in random_keep(graph, seed, None).items()}
        thin, filled = slice_model(model, graph, keep), refilled.fill(keep)
        with torch.no_grad():
            assert torch.equal(filled(images), thin(images))
        for key, tensor in thin.state_dict().items():
            assert torch.equal(filled.state_dict()[key], tensor), key
    for buffer in refilled.fill({}).buffers():  # statistics are its own
        buffer.zero_()
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[key]), key


def test_weights_that_nobody_cuts_are_not_copied():
    model = make_model("resnet18")
    graph = trace_model(model, (3, 64, 64))
    filled = RefilledModel(model, graph).fill({})
    assert filled.layer4[0].conv1.weight.data_ptr() == model.layer4[0].conv1.weight.data_ptr()
    assert filled.bn1.running_mean.data_ptr() != model.bn1.running_mean.data_ptr()
