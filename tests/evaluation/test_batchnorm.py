import pytest
import torch
from torch import nn

from eagleeye_hf import EagleEyeError, evaluate_model, recalibrate_bn
from tests.helpers import make_model


def layer_and_batches(sizes=(4, 4, 2)):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU())
    return model, [torch.randn(n, 3, 9, 9) * 2 + 1 for n in sizes]


@pytest.mark.parametrize("sizes", [(4,), (4, 4, 4), (4, 4, 1)])
def test_exact_statistics_are_those_of_all_images_together(sizes):
    model, batches = layer_and_batches(sizes)
    recalibrate_bn(model, batches)
    activations = model[0](torch.cat(batches)).detach().double()
    torch.testing.assert_close(model[1].running_mean.double(), activations.mean((0, 2, 3)), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model[1].running_var.double(), activations.var((0, 2, 3)), rtol=1e-5, atol=1e-6)


def test_momentum_is_the_papers_equation_4():
    model, batches = layer_and_batches()
    mean, var = torch.zeros(5), torch.ones(5)
    for batch in batches:
        activations = model[0](batch).detach()
        mean = 0.9 * mean + 0.1 * activations.mean((0, 2, 3))
        var = 0.9 * var + 0.1 * activations.var((0, 2, 3))
    recalibrate_bn(model, batches, momentum=0.9)
    torch.testing.assert_close(model[1].running_mean, mean)
    torch.testing.assert_close(model[1].running_var, var)


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_large_100", "cs3darknet_s"])
def test_only_batchnorm_layers_change_and_modes_are_restored(name):
    """`cs3darknet_s` has timm's BatchNormAct2d, a subclass that applies the activation too."""
    model = make_model(name)
    model.train()
    frozen = next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    frozen.eval()
    frozen.momentum = 0.3
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    recalibrate_bn(model, [torch.randn(4, 3, 64, 64)])
    assert [module.training for module in model.modules()] == modes
    assert frozen.momentum == 0.3
    for key, tensor in model.state_dict().items():
        changed = not torch.equal(tensor, before[key])
        assert changed == ("running" in key or "num_batches" in key), key
    assert not any(m._forward_hooks for m in model.modules() if isinstance(m, nn.BatchNorm2d))


def test_after_an_error_everything_is_as_before():
    model, batches = layer_and_batches()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(RuntimeError):
        recalibrate_bn(model, [batches[0], torch.randn(2, 7, 9, 9)])
    for key, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[key])
    assert model[1].momentum == 0.1
    assert model.training


def test_bad_input():
    model, batches = layer_and_batches()
    with pytest.raises(EagleEyeError, match="no BatchNorm layer"):
        recalibrate_bn(nn.Sequential(nn.Conv2d(3, 4, 1)), batches)
    with pytest.raises(EagleEyeError, match="`batches` is empty"):
        recalibrate_bn(model, [])
    with pytest.raises(EagleEyeError, match=r"in \[0, 1\)"):
        recalibrate_bn(model, batches, momentum=1.5)


def test_metrics_are_those_computed_by_hand():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 7))
    images, labels = torch.randn(10, 3, 2, 2), torch.randint(0, 7, (10,))
    metrics = evaluate_model(model, [(images[:6], labels[:6]), (images[6:], labels[6:])])
    logits = model(images)
    assert metrics.top1 == pytest.approx((logits.argmax(1) == labels).float().mean().item())
    ranks = (logits > logits.gather(1, labels[:, None])).sum(1)
    assert metrics.top5 == pytest.approx((ranks < 5).float().mean().item())
    assert metrics.loss == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)
    assert metrics.num_images == 10
    assert model.training
    with pytest.raises(EagleEyeError, match="7 outputs"):
        evaluate_model(model, [(images, labels + 7)])
    with pytest.raises(EagleEyeError, match="no images"):
        evaluate_model(model, [])
