"""Gradients of depthwise convolutions on a CPU under bfloat16."""

import pytest
import timm
import torch
from torch import nn

from eagleeye_hf.networks.depthwise import Float32Depthwise


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("how", [{"padding": 1}, {"stride": 2}, {"padding": 2, "dilation": (2, 1)}])
def test_gradients_are_those_of_float64_on_the_rounded_numbers(how, bias):
    torch.manual_seed(0)
    layer, images = nn.Conv2d(12, 24, 3, groups=12, bias=bias, **how), torch.randn(4, 12, 15, 15)
    found, exact = images.bfloat16().requires_grad_(), images.bfloat16().double().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        plain = layer(found)
        with Float32Depthwise():
            outputs = layer(found)
    assert torch.equal(outputs, plain)
    weights = torch.randn(outputs.shape).bfloat16()
    outputs.backward(weights)
    twin = nn.Conv2d(12, 24, 3, groups=12, bias=bias, **how).double()
    twin.load_state_dict(layer.state_dict())
    with torch.no_grad():
        twin.weight.copy_(twin.weight.bfloat16())
    twin(exact).backward(weights.double())
    for ours, theirs in ((found, exact), *zip(layer.parameters(), twin.parameters(), strict=True)):
        assert ours.grad.dtype == ours.dtype
        rounding = 5e-3 if ours.dtype == torch.bfloat16 else 1e-5
        assert torch.allclose(ours.grad.double(), theirs.grad, rtol=rounding, atol=rounding)


def test_a_network_trains_in_it_as_without():
    torch.manual_seed(0)
    model = timm.create_model("mobilenetv3_small_050", num_classes=4).eval()
    images, gradients = torch.randn(4, 3, 64, 64), []
    for mode in (torch.autograd.enable_grad, Float32Depthwise):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16), mode():
            model(images).square().sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert float((gradients[0] - gradients[1]).norm() / gradients[0].norm()) < 0.05


def test_what_is_not_depthwise_or_not_under_autocast_runs_as_ever():
    images = torch.randn(2, 8, 9, 9)
    layers = [nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(8, 8, 3, groups=8, padding="same")]
    for layer, half in zip(layers, (False, True, True), strict=True):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            expected = torch.autograd.grad(layer(images).sum(), layer.weight)[0]
            with Float32Depthwise():
                outputs = layer(images)
            assert torch.equal(torch.autograd.grad(outputs.sum(), layer.weight)[0], expected)
            with Float32Depthwise(), torch.no_grad():
                assert not layer(images).requires_grad
