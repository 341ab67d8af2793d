"""After slicing, a timm model does all that timm promises, and tells the truth about itself."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

from eagleeye_hf import slice_model, trace_model
from tests.helpers import make_model, random_keep

FAMILIES = [
    ("resnet18", 64),
    ("resnetblur18", 64),
    ("ecaresnet26t", 64),
    ("resnest14d", 64),
    ("res2net50_14w_8s", 64),
    ("skresnet18", 64),
    ("seresnext26d_32x4d", 64),
    ("regnety_002", 64),
    ("regnetv_040", 64),
    ("repvgg_a0", 64),
    ("mobileone_s0", 64),
    ("gcresnet33ts", 64),
    ("mobilenetv1_100", 64),
    ("mobilenetv3_small_100", 64),
    ("mobilenetv4_conv_small", 64),
    ("efficientnet_b0", 64),
    ("mixnet_s", 64),
    ("tf_efficientnet_cc_b0_4e", 64),
    ("hardcorenas_a", 64),
    ("tinynet_e", 64),
    ("lcnet_050", 64),
    ("ghostnet_050", 64),
    ("ghostnetv2_100", 64),
    ("ghostnetv3_050", 64),
    ("repghostnet_050", 64),
    ("repvit_m0_9", 64),
    ("fastvit_t8", 64),
    ("fasternet_t0", 64),
    ("starnet_s1", 64),
    ("densenet121", 64),
    ("dla34", 64),
    ("dpn48b", 64),
    ("hrnet_w18_small", 64),
    ("ese_vovnet19b_dw", 64),
    ("hgnetv2_b0", 64),
    ("cspresnet50", 64),
    ("cs3darknet_s", 64),
    ("selecsls42b", 64),
    ("tresnet_m", 64),
    ("xception41", 96),
    ("legacy_xception", 96),
    ("inception_v3", 96),
    ("inception_v4", 96),
    ("inception_resnet_v2", 96),
    ("nasnetalarge", 96),
    ("pnasnet5large", 96),
    ("vgg11_bn", 64),
    ("rexnet_100", 64),
    ("convmixer_768_32", 64),
    ("inception_next_atto", 64),
    ("lowformer_b0", 64),
    ("resnetv2_50", 64),
    ("resnet20_cifar", 32),
]
QUICK = {"resnet18", "res2net50_14w_8s", "mobilenetv3_small_100", "ghostnet_050", "fastvit_t8", "hrnet_w18_small"}
QUICK |= {"cs3darknet_s", "selecsls42b", "resnest14d", "resnet20_cifar", "repvit_m0_9"}
NAMED_OTHERWISE = {"hrnet_w18_small", "tresnet_m"}
"""`feature_info` names branches or nothing there, instead of modules."""
CASES = [pytest.param(*case, marks=[] if case[0] in QUICK else pytest.mark.slow, id=case[0]) for case in FAMILIES]


def prune(name: str, pixels: int) -> tuple[nn.Module, nn.Module, torch.Tensor]:
    model = make_model(name)
    graph = trace_model(model, (3, pixels, pixels))
    return model, slice_model(model, graph, random_keep(graph, 0)), torch.randn(2, 3, pixels, pixels)


@pytest.mark.parametrize(("name", "pixels"), CASES)
def test_a_sliced_model_is_still_a_model(name, pixels):
    model, thin, images = prune(name, pixels)
    inputs = {}

    def note(layer, args, output):
        inputs[layer] = args[0].shape

    channels = {}

    def note_channels(layer, args, output, key):
        channels[key] = (output[0] if isinstance(output, (list, tuple)) else output).shape[1]

    for info in thin.feature_info:
        if name not in NAMED_OTHERWISE:
            thin.get_submodule(info["module"]).register_forward_hook(partial(note_channels, key=info["module"]))
    thin.get_classifier().register_forward_hook(note)
    with torch.inference_mode():
        expected = thin(images)
        features = thin.forward_features(images)
        torch.testing.assert_close(thin.forward_head(features), expected)
        pre_logits = thin.forward_head(features, pre_logits=True)
    assert features.shape[1] == thin.num_features <= model.num_features
    assert pre_logits.shape[1] == thin.head_hidden_size
    assert inputs[thin.get_classifier()][1] == thin.head_hidden_size
    found = {info["module"]: info["num_chs"] for info in thin.feature_info}
    if name in NAMED_OTHERWISE:
        intermediates = thin.forward_intermediates(images, intermediates_only=True)
        channels = dict(zip(found, (t.shape[1] for t in intermediates), strict=True))
    assert found == channels

    with torch.inference_mode():
        torch.testing.assert_close(copy.deepcopy(thin)(images), expected)
        other_format = copy.deepcopy(thin).to(memory_format=torch.channels_last)
        error = other_format(images.to(memory_format=torch.channels_last)) - expected
    assert error.abs().max() < 1e-4 * expected.abs().max()

    for layer in thin.modules():
        if isinstance(layer, nn.Conv2d):
            assert layer.weight.shape[:2] == (layer.out_channels, layer.in_channels // layer.groups)
        elif isinstance(layer, nn.modules.batchnorm._BatchNorm):
            assert layer.num_features == len(layer.running_mean)

    thin.reset_classifier(7)
    if hasattr(thin, "set_grad_checkpointing"):
        try:
            thin.set_grad_checkpointing(True)
        except AssertionError:  # the full model can't, either
            with pytest.raises(AssertionError):
                model.set_grad_checkpointing(True)
    logits = thin.train()(images)
    logits = logits[0] if isinstance(logits, tuple) else logits
    assert logits.shape == (2, 7)
    logits.sum().backward()
    assert all(p.grad.shape == p.shape for p in thin.parameters() if p.grad is not None)
    assert next(thin.get_classifier().parameters()).grad is not None


@pytest.mark.parametrize(
    ("name", "pixels"),
    [("repvgg_a0", 64), ("mobileone_s0", 64), ("fastvit_t8", 64), ("repvit_m0_9", 64), ("repghostnet_050", 64)],
)
def test_a_sliced_model_can_be_fused(name, pixels):
    from timm.utils import reparameterize_model

    _, thin, images = prune(name, pixels)
    fused = reparameterize_model(thin)
    assert len(list(fused.modules())) < len(list(thin.modules()))
    with torch.inference_mode():
        expected = thin(images)
        assert (fused(images) - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_100", "resnet20_cifar"])
def test_a_sliced_model_can_be_exported_and_compiled(name):
    _, thin, images = prune(name, 64)
    with torch.inference_mode():
        expected = thin(images)
        torch.testing.assert_close(torch.export.export(thin, (images,)).module()(images), expected)
        torch.testing.assert_close(torch.compile(thin, backend="aot_eager")(images), expected)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "pixels"), FAMILIES, ids=[name for name, _ in FAMILIES])
def test_every_family_can_be_exported_and_compiled(name, pixels):
    _, thin, images = prune(name, pixels)
    with torch.inference_mode():
        expected = thin(images)
        for other in (torch.export.export(thin, (images,)).module(), torch.compile(thin, backend="aot_eager")):
            assert (other(images) - expected).abs().max() < 1e-4 * expected.abs().max()
    torch._dynamo.reset()
