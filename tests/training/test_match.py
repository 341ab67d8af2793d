"""Layers learn to give what the full network's give, without labels."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from eagleeye_hf import (
    Budget,
    EagleEyeError,
    MatchConfig,
    PairSet,
    choose_channels,
    match_teacher,
    recalibrate_bn,
    sample_strategies,
    slice_model,
    trace_model,
)
from eagleeye_hf.data.batches import Portion
from eagleeye_hf.evaluation.layers import LayerOutputs, matched_layers, matching_loss
from eagleeye_hf.networks.running import scale_images
from eagleeye_hf.training.match import LEAST, MOST, FewSteps, match_length
from tests.helpers import make_model

CONFIG = MatchConfig(match_steps=30, match_batch_size=16, match_lr=0.05)


def pairs(size: int = 32, num: int = 64, labels: int = 10) -> PairSet:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(num, 3, 4, 4, generator=generator)  # smooth, as photographs are
    images = torch.nn.functional.interpolate(coarse, size, mode="bilinear")
    return PairSet([(image, torch.tensor(i % labels)) for i, image in enumerate(images)])


def thinned(name: str, size: int):
    small = {"block_config": (2, 2, 2)} if name.startswith("densenet") else {}
    model = make_model(name, num_classes=10, **small)
    graph = trace_model(model, (3, size, size))
    strategy = sample_strategies(graph, Budget(macs=0.6), 2, seed=1, divisor=1)[1]
    keep = choose_channels(model, graph, strategy.widths)
    thin = recalibrate_bn(slice_model(model, graph, keep), pairs(size).cached_batches(16))
    return model, graph, keep, thin


def error_of(thin, full, size: int) -> float:
    """Relative squared error of the outputs, on images that no training has seen."""
    images = torch.nn.functional.interpolate(torch.randn(64, 3, 4, 4), size, mode="bilinear")
    with torch.no_grad():
        wanted, found = full(images), thin(images)
    return float((found - wanted).square().mean() / (wanted - wanted.mean(0)).square().mean())


@pytest.mark.parametrize(
    ("name", "size"),
    [("resnet20_cifar", 32), ("mobilenetv3_small_050", 64), ("regnety_002", 64), ("densenet121", 64)],
)
def test_every_kind_of_network_comes_nearer_to_the_full_one(name, size):
    full, graph, keep, thin = thinned(name, size)
    before = {key: tensor.clone() for key, tensor in thin.state_dict().items()}
    matched = match_teacher(thin, full, graph, keep, pairs(size), CONFIG)
    torch.manual_seed(1)
    start = error_of(thin, full, size)
    torch.manual_seed(1)
    assert error_of(matched, full, size) < 0.8 * start
    assert not matched.training
    for key, tensor in thin.state_dict().items():
        assert torch.equal(tensor, before[key]), "the network that is given stays as it is"


def test_labels_are_not_read():
    full, graph, keep, thin = thinned("resnet20_cifar", 32)
    first, second = (
        match_teacher(thin, full, graph, keep, pairs(labels=labels), replace(CONFIG, match_steps=4))
        for labels in (10, 3)
    )
    for found, expected in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(found, expected)


def test_the_loss_compares_kept_channels_layer_by_layer():
    full, graph, keep, thin = thinned("resnet20_cifar", 32)
    kept = matched_layers(full, graph, keep)
    ours, theirs = LayerOutputs(thin, kept), LayerOutputs(full, kept)
    images = torch.randn(8, 3, 32, 32)
    with torch.no_grad():
        outputs, wanted = thin(images), full(images)
    found = matching_loss(ours.taken, theirs.taken, kept, outputs, wanted)
    errors = []
    for name, goal in theirs.taken.items():
        gone: set[int] = set()  # a tensor may lie in several groups: the stages of CIFAR ResNets share channels
        for group in graph.groups:
            for member in group.members:
                if member.tensor == f"{name}.weight" and group.name in keep:
                    removed = np.setdiff1d(np.arange(group.channels), keep[group.name])
                    gone |= set(member.index[removed].ravel().tolist())
        goal = goal[:, [channel for channel in range(goal.shape[1]) if channel not in gone]]
        goal, output = goal.double(), ours.taken[name].double()
        errors.append(float(((output - goal) ** 2).mean() / goal.var((0, 2, 3), correction=0).mean()))
    last = float((outputs - wanted).double().square().mean() / wanted.double().var(0, correction=0).mean())
    assert float(found) == pytest.approx(np.mean(errors) + last, rel=1e-3)
    whole = matching_loss(theirs.taken, theirs.taken, dict.fromkeys(kept), wanted, wanted)
    assert float(whole) == 0


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_loss_is_the_same_in_both_memory_formats(layout):
    output, goal, kept = torch.randn(4, 3, 5, 6), torch.randn(4, 7, 5, 6), torch.tensor([0, 4, 6])
    found = matching_loss(
        {"a": output.to(memory_format=layout)},
        {"a": goal.to(memory_format=layout)},
        {"a": kept},
        output[:, :, 0, 0],
        goal[:, :3, 0, 0],
    )
    parts = [(output, goal[:, kept], (0, 2, 3)), (output[:, :, 0, 0], goal[:, :3, 0, 0], 0)]
    wanted = sum(
        (ours - theirs).square().mean() / theirs.var(over, correction=0).mean() for ours, theirs, over in parts
    )
    assert found.item() == pytest.approx(float(wanted), rel=1e-4)
    whole, stays = torch.zeros_like(goal), torch.zeros(7, dtype=torch.bool)
    whole[:, kept], stays[kept] = output, True  # in the full network's shapes
    outputs = output[:, :, 0, 0], goal[:, :3, 0, 0]
    whole, goal = whole.to(memory_format=layout), goal.to(memory_format=layout)
    masked = matching_loss({"a": whole}, {"a": goal}, {"a": stays}, *outputs)
    assert masked.item() == pytest.approx(found.item(), rel=1e-4)


def test_the_loss_of_large_maps_is_precise():
    """A sum of as many float32 values, one after the other, loses half a per mille."""
    output, goal = torch.rand(2, 8, 2, 720, 720)
    found = matching_loss({"a": output}, {"a": goal}, {"a": None}, output[:, :, 0, 0], output[:, :, 0, 0])
    wanted = (output - goal).double().square().mean() / goal.double().var((0, 2, 3), correction=0).mean()
    assert found.item() == pytest.approx(wanted.item(), rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_gradient_of_the_loss_is_that_of_the_squared_error(dtype):
    output, goal = torch.randn(2, 4, 6, 16, 16).to(dtype)
    output = output.to(memory_format=torch.channels_last).requires_grad_()
    found = matching_loss({"a": output}, {"a": goal}, {"a": None}, output[:, :, 0, 0], goal[:, :, 0, 0])
    found.backward()
    again = output.detach().double().requires_grad_()
    wanted = goal.double()
    parts = [(again, wanted, (0, 2, 3)), (again[:, :, 0, 0], wanted[:, :, 0, 0], 0)]
    loss = sum((a - b).square().mean() / b.var(over, correction=0).mean() for a, b, over in parts)
    loss.backward()
    precision = {torch.float64: 1e-5, torch.float32: 1e-5}.get(dtype, 2e-2)
    assert found.item() == pytest.approx(loss.item(), rel=precision)
    assert output.grad.dtype == dtype
    assert torch.allclose(
        output.grad.double(), again.grad, rtol=precision, atol=precision * float(again.grad.abs().max())
    )


def test_a_network_of_smaller_images_learns_from_what_the_full_one_sees_in_larger_ones():
    full = make_model("resnet20_cifar", num_classes=10)
    graph, images, size = trace_model(full, (3, 32, 32)), pairs(32), 20
    small = [scale_images(pixels, size) for pixels, _ in images.cached_batches(64)]
    thin = recalibrate_bn(slice_model(full, graph, {}), small)
    matched = match_teacher(thin, full, graph, {}, images, CONFIG, image_size=size, calibration=images)
    with torch.no_grad():
        wanted = full(images.cached_batches(64)[0][0])
        before, after = ((network(small[0]) - wanted).square().mean() for network in (thin, matched))
    assert after < 0.5 * before
    means = next(module.running_mean for module in matched.modules() if isinstance(module, torch.nn.BatchNorm2d))
    assert torch.allclose(means, matched.conv1(small[0]).mean((0, 2, 3)), atol=1e-5)


def test_larger_maps_are_averaged_where_layers_are_compared():
    goal = torch.randn(4, 6, 16, 16)
    kept, averaged = torch.tensor([0, 2, 5]), torch.nn.functional.avg_pool2d(goal, 2)
    loss = matching_loss({"a": averaged[:, kept]}, {"a": goal}, {"a": kept}, goal[:, :2, 0, 0], goal[:, :2, 0, 0])
    assert float(loss) == pytest.approx(0, abs=1e-6)
    output = averaged[:, kept] + 1
    loss = matching_loss({"a": output}, {"a": goal}, {"a": kept}, goal[:, :2, 0, 0], goal[:, :2, 0, 0])
    assert float(loss) == pytest.approx(1 / float(averaged[:, kept].var((0, 2, 3), correction=0).mean()), rel=1e-4)


def test_matching_goes_on_after_a_kill(tmp_path):
    full, graph, keep, thin = thinned("resnet20_cifar", 32)
    config, images = replace(CONFIG, match_steps=9), pairs()  # three epochs of three of four steps
    expected = match_teacher(thin, full, graph, keep, images, config)

    def killed(record):
        if record.epoch == 2:
            raise KeyboardInterrupt

    for on_epoch in (killed, None):
        try:
            found = match_teacher(thin, full, graph, keep, images, config, checkpoint=tmp_path, on_epoch=on_epoch)
        except KeyboardInterrupt:
            found = None
    assert found is not None
    for one, other in zip(found.state_dict().values(), expected.state_dict().values(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(("num", "whole", "length"), [(10, 1, LEAST), (6_400, 100, LEAST), (1_281_167, 20_019, MOST)])
def test_small_data_are_seen_often_and_large_data_in_part(num, whole, length):
    size, epochs, steps = match_length(MatchConfig(), num)
    assert size == min(64, num)
    assert steps <= whole
    assert length <= epochs * steps < length + epochs
    assert match_length(MatchConfig(match_steps=0), num)[1:] == (0, 0)


def test_few_steps_are_the_first_of_an_epoch_for_any_number_of_processes():
    images = pairs(num=64)
    few = FewSteps(images, 3)
    assert few.count_steps(16) == 3
    alone = [labels for _, labels in few.epoch_batches(0, Portion(batch_size=16))]
    assert [len(labels) for labels in alone] == [16, 16, 16]
    halves = [list(few.epoch_batches(0, Portion(batch_size=16, process=i, num_processes=2))) for i in (0, 1)]
    for labels, *parts in zip(alone, *halves, strict=True):
        assert sorted(labels.tolist()) == sorted(torch.cat([part for _, part in parts]).tolist())
    later = list(few.epoch_batches(0, Portion(batch_size=16, start=2)))
    assert torch.equal(later[0][1], alone[2])
    assert len(later) == 1


def test_another_networks_teacher_is_refused():
    _, graph, keep, thin = thinned("resnet20_cifar", 32)
    other = make_model("resnet20_cifar", num_classes=7)
    with pytest.raises(EagleEyeError, match="`teacher` has `num_classes=7`, but `model` has 10"):
        match_teacher(thin, other, graph, keep, pairs(), CONFIG)
