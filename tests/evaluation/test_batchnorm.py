import copy
import math

import pytest
import torch
from accelerate import Accelerator
from timm.layers import BatchNormAct2d, convert_sync_batchnorm
from timm.utils import freeze
from torch import nn

from eagleeye_hf import AdaptiveBNScore, EagleEyeError, evaluate_model, recalibrate_bn, trace_model
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


@pytest.mark.parametrize("momentum", [None, 0.9])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_statistics_are_repaired_as_those_of_a_fresh_layer(value, momentum):
    """NaN and infinity survive every average of the old with the new."""
    model, batches = layer_and_batches()
    expected = copy.deepcopy(model)
    model[1].running_mean[2] = model[1].running_var[3] = value
    recalibrate_bn(model, batches, momentum)
    recalibrate_bn(expected, batches, momentum)
    assert torch.equal(model[1].running_mean, expected[1].running_mean)
    assert torch.equal(model[1].running_var, expected[1].running_var)


def test_what_is_not_finite_is_named_and_changes_nothing():
    model, batches = layer_and_batches()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    batches[1][0, 0, 0, 0] = float("nan")
    with pytest.raises(EagleEyeError, match="images with values that are not finite"):
        recalibrate_bn(model, batches)
    huge = [batch.nan_to_num() * 1e30 for batch in batches]
    with pytest.raises(EagleEyeError, match="the statistics of 1 are not finite"):
        recalibrate_bn(model, huge)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_variances_that_float16_cannot_hold_are_named():
    model, batches = layer_and_batches()
    model = model.half()
    with pytest.raises(EagleEyeError, match="the statistics of 1 are not finite"):
        recalibrate_bn(model, [batch * 1000 for batch in batches])
    assert model[1].running_var.isfinite().all()


def test_dropout_within_a_normalisation_stays_off():
    torch.manual_seed(0)
    drop = BatchNormAct2d(5, drop_layer=lambda: nn.Dropout(0.5))
    model = nn.Sequential(nn.Conv2d(3, 5, 3), drop, nn.Conv2d(5, 4, 3), nn.BatchNorm2d(4)).eval()
    batches = [torch.randn(8, 3, 9, 9)]
    recalibrate_bn(model, batches)
    inputs = model[:3](batches[0]).detach()
    torch.testing.assert_close(model[3].running_var, inputs.var((0, 2, 3)), rtol=5e-3, atol=1e-6)
    assert not drop.drop.training


def test_a_last_single_image_joins_the_batch_before():
    """Where a map is 1 x 1, one image tells no variance."""
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3))
    images = torch.randn(9, 3, 4, 4)
    recalibrate_bn(model, images.split(4))
    torch.testing.assert_close(model[1].running_var, images.mean((2, 3)).var(0))
    with pytest.raises(EagleEyeError, match="one of 1 image, which tells no variance"):
        recalibrate_bn(model, [images[:1]])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_networks_of_any_type_take_images_of_any_type(dtype):
    model = make_model("resnet20_cifar")
    other = copy.deepcopy(model).to(dtype)
    images, labels = torch.randn(16, 3, 32, 32), torch.randint(0, 10, (16,))
    recalibrate_bn(model, [images])
    assert recalibrate_bn(other, [images]) is other
    assert {p.dtype for p in other.parameters()} == {dtype}
    exact = dtype == torch.float64
    torch.testing.assert_close(
        other.bn1.running_mean.float(), model.bn1.running_mean, rtol=1e-5 if exact else 0.02, atol=0.02
    )
    found, expected = (evaluate_model(m, [(images, labels)]) for m in (other, model))
    assert found.loss == pytest.approx(expected.loss, rel=1e-4 if exact else 0.05)
    graph = trace_model(other)
    score = AdaptiveBNScore(other, graph, [(images, labels)], [(images, labels)])
    assert math.isfinite(score(graph.widths).loss)
    assert {p.dtype for p in score.build(graph.widths, compensate=True).parameters()} == {dtype}


def test_batches_and_outputs_as_transformers_has_them():
    from transformers import TimmWrapperConfig, TimmWrapperForImageClassification

    model = TimmWrapperForImageClassification(TimmWrapperConfig(architecture="resnet18", num_labels=10)).eval()
    plain = model.timm_model
    images, labels = torch.randn(8, 3, 64, 64), torch.randint(0, 10, (8,))
    batches = [{"pixel_values": images, "labels": labels}]
    found = evaluate_model(recalibrate_bn(model, batches), batches)
    assert found == evaluate_model(plain, [(images, labels)])
    graph = trace_model(model, (3, 64, 64))
    score = AdaptiveBNScore(model, graph, [(images, labels)], [(images, labels)], compensate=True, criterion="taylor")
    assert score(graph.widths).reported == found.top1
    with pytest.raises(EagleEyeError, match="but none of labels, label"):
        evaluate_model(model, [{"pixel_values": images}])
    with pytest.raises(EagleEyeError, match="hold images alone"):
        evaluate_model(model, [images])


def test_frozen_layers_are_told():
    model = make_model("resnet18")
    freeze(model, ["conv1", "bn1", "layer1"])
    with pytest.warns(UserWarning, match=r"5 frozen BatchNorm layers \(bn1, layer1.0.bn1, layer1.0.bn2, ...\) keep"):
        recalibrate_bn(model, [torch.randn(4, 3, 64, 64)])


def test_synchronised_layers_wait_for_nobody():
    model, batches = layer_and_batches()
    expected = copy.deepcopy(model)
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    recalibrate_bn(model, batches)  # on a CPU a synchronised one would refuse
    recalibrate_bn(expected, batches)
    assert torch.equal(model[1].running_var, expected[1].running_var)
    assert nn.SyncBatchNorm.forward.__qualname__ == "SyncBatchNorm.forward"
    act = convert_sync_batchnorm(make_model("efficientnet_b0"))
    same = make_model("efficientnet_b0")
    images = torch.randn(4, 3, 64, 64)
    with torch.no_grad():
        found, expected = recalibrate_bn(act, [images])(images), recalibrate_bn(same, [images])(images)
    torch.testing.assert_close(found, expected)  # timm has its activation in the layer


def test_processes_pool_what_their_batches_tell(monkeypatch):
    """Each with its part, of different sizes, they have the statistics that one process has of all batches."""
    batches = [torch.randn(size, 3, 32, 32) * size for size in (4, 6, 3, 5)]
    expected = recalibrate_bn(make_model("resnet20_cifar"), batches).state_dict()
    some = recalibrate_bn(make_model("resnet20_cifar"), batches[1:]).state_dict()
    told = []

    def gather(accelerator, make):
        told.append(make())
        return list(told)

    monkeypatch.setattr("eagleeye_hf.evaluation.batchnorm.gather_parts", gather)
    recalibrate_bn(make_model("resnet20_cifar"), batches[:1], accelerator=Accelerator())
    found = recalibrate_bn(make_model("resnet20_cifar"), batches[1:], accelerator=Accelerator()).state_dict()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=1e-7)
    told[:] = [told[1]]
    alone = recalibrate_bn(make_model("resnet20_cifar"), [], accelerator=Accelerator()).state_dict()
    torch.testing.assert_close(alone["bn1.running_var"], some["bn1.running_var"])
    with pytest.raises(EagleEyeError, match="goes by the order of batches"):
        recalibrate_bn(make_model("resnet20_cifar"), batches, 0.9, Accelerator())
