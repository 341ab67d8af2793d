import copy
from dataclasses import replace

import pytest
import torch

from eagleeye_hf import (
    EagleEyeError,
    FinetuneConfig,
    finetune_model,
    kept_inputs,
    open_splits,
    recalibrate_bn,
    slice_model,
    trace_model,
)
from eagleeye_hf.pruning.compensate import find_readers
from eagleeye_hf.training.features import FeatureDistillation
from tests.helpers import digits_dataset, make_model, random_keep, silence


@pytest.fixture(scope="module")
def example():
    model = make_model("resnet20_cifar")
    graph = trace_model(model)
    return model, graph, random_keep(graph, 0)


def measure(network, teacher, kept, images) -> float:
    """The loss, with BatchNorm statistics as they are."""
    network, teacher = copy.deepcopy(network).eval(), copy.deepcopy(teacher).eval()
    features = FeatureDistillation(network, teacher, kept)
    for _ in range(2):  # the second time tells whether the first was forgotten
        network(images)
        with torch.no_grad():
            teacher(images)
        loss = features.loss()
    assert loss.requires_grad
    return loss.item()


def test_the_kept_inputs_are_those_that_the_thin_layers_read(example):
    model, graph, keep = example
    thin = slice_model(model, graph, keep)
    kept = kept_inputs(model, graph, keep)
    assert list(kept) == find_readers(model, graph)
    for name, channels in kept.items():
        assert len(channels) == thin.get_submodule(name).weight.shape[1]
    assert torch.equal(kept["layer1.0.conv2"], torch.as_tensor(keep["layer1.0.conv1"]))
    assert torch.equal(kept_inputs(model, graph, {})["layer1.1.conv1"], torch.arange(16))


def test_a_network_that_lost_nothing_has_no_error(example):
    model, graph, keep = example
    images = torch.randn(3, 3, 32, 32)
    thin, kept = slice_model(model, graph, keep), kept_inputs(model, graph, keep)
    assert measure(thin, silence(model, graph, keep), kept, images) < 1e-9
    assert measure(thin, model, kept, images) > 1e-2


@pytest.mark.parametrize("batch", [slice(0, 4), slice(0, 1)], ids=["four", "one"])
def test_the_error_is_relative(example, batch):
    model, graph, _ = example
    images = torch.randn(4, 3, 32, 32)[batch]
    kept = {"layer1.0.conv2": kept_inputs(model, graph, {})["layer1.0.conv2"]}
    for factor in (0.0, 0.5, 3.0):
        scaled = copy.deepcopy(model)
        scaled.layer1[0].bn1.weight.data *= factor
        scaled.layer1[0].bn1.bias.data *= factor
        assert measure(scaled, model, kept, images) == pytest.approx((factor - 1) ** 2, rel=1e-4)


def test_training_brings_the_features_nearer(example):
    model, graph, keep = example
    data = open_splits(digits_dataset(), model, calibration_images=20, holdout_images=20, hflip=False)
    calibration, images = data.calibration.cached_batches(), next(data.test.batches(20))[0]
    model = recalibrate_bn(copy.deepcopy(model), calibration)
    thin, kept = slice_model(model, graph, keep), kept_inputs(model, graph, keep)
    config = FinetuneConfig(epochs=2, batch_size=20, lr=0.02, distillation=0.0)
    errors = [measure(recalibrate_bn(copy.deepcopy(thin), calibration), model, kept, images)]
    for weight in (10.0, 0.0):
        training = replace(config, feature_distillation=weight)
        trained = finetune_model(thin, data.train, training, teacher=model, kept_inputs=kept)
        errors.append(measure(recalibrate_bn(trained, calibration), model, kept, images))
    before, with_features, without = errors
    assert with_features < 0.95 * before
    assert with_features < 0.95 * without


def test_a_network_whose_kept_channels_are_unknown(example):
    model, *_ = example
    data = open_splits(digits_dataset(), model, calibration_images=20, holdout_images=20)
    config = FinetuneConfig(epochs=1, batch_size=20, feature_distillation=3.0)
    with pytest.raises(EagleEyeError, match=r"`feature_distillation=3.0` needs `kept_inputs`"):
        finetune_model(model, data.train, config, teacher=model)
