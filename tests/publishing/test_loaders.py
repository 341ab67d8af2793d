"""Every loader, for every family of networks, to the same outputs as the pruned network in memory."""

import warnings

import pytest
import timm
import torch
from torch import nn
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification

from eagleeye_hf import from_pretrained, save_pretrained
from tests.publishing.make import prune

QUICK = [
    "resnet20_cifar",
    "resnetblur18",
    "tf_efficientnet_cc_b0_4e",
    "mobilenetv3_small_100",
    "levit_128s",
]
# fmt: off
OTHERS = [
    "seresnext26d_32x4d", "ghostnet_050", "repvgg_a0",
    "efficientnet_b0", "mixnet_s", "efficientnet_b0_g8_gn", "tinynet_e", "spnasnet_100", "mobilenetv1_100",
    "mobilenetv4_conv_small", "hardcorenas_a", "lcnet_050", "resnet18", "resnet26t", "ecaresnet26t", "resnest14d",
    "res2net50_14w_8s", "res2next50", "skresnet18", "legacy_seresnet18", "regnetx_002", "regnety_002",
    "regnetz_b16", "regnetv_040", "mobileone_s0", "gcresnext26ts", "ghostnetv2_100", "ghostnetv3_100",
    "repghostnet_050", "repvit_m0_9", "fastvit_t8", "fasternet_t0", "starnet_s1", "densenet121", "dla34",
    "dla60_res2net", "dpn48b", "hrnet_w18_small", "ese_vovnet19b_slim", "hgnet_tiny", "hgnetv2_b0", "cspresnet50",
    "cspnext_tiny", "selecsls42b", "tresnet_m", "xception41", "legacy_xception", "inception_v3", "inception_v4",
    "inception_resnet_v2", "nasnetalarge", "pnasnet5large", "vgg11_bn", "rexnet_100", "convmixer_768_32",
    "inception_next_atto", "lowformer_b0", "resnetv2_50", "efficientvit_b0", "edgenext_xx_small",
    "coatnet_pico_rw_224",
]
# fmt: on
FAMILIES = [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)]
PIXELS = {"levit_128s": 224, "coatnet_pico_rw_224": 224, "inception_v3": 128, "inception_v4": 128}
PIXELS |= {"inception_resnet_v2": 128, "nasnetalarge": 128, "pnasnet5large": 128, "legacy_xception": 96}


def exactly(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def nearly(actual, expected):
    """transformers leaves tensors where they lie in the file; unaligned, convolutions round differently."""
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=float(expected.abs().max()) * 1e-5)


@pytest.fixture(scope="module", params=FAMILIES)
def saved(request, tmp_path_factory):
    """A pruned network, its folder, and images for it."""
    model, images = prune(request.param, PIXELS.get(request.param))
    folder = tmp_path_factory.mktemp("loaders") / "run"
    save_pretrained(model, folder)
    return model, folder, images


@pytest.fixture(autouse=True)
def inference():
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="transformers")
        yield


def test_outputs_are_the_same(saved):
    model, folder, images = saved
    exactly(from_pretrained(folder)(images), model(images))
    exactly(timm.create_model(f"local-dir:{folder}", pretrained=True).eval()(images), model(images))


def test_timm_adapts_head_and_input(saved):
    model, folder, images = saved
    changed = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=3).eval()
    assert changed(images).shape == (2, 3)
    exactly(changed.forward_features(images), model.forward_features(images))
    headless = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0).eval()
    exactly(headless.forward_features(images), model.forward_features(images))
    assert headless(images).shape == (2, headless.head_hidden_size)
    grey = timm.create_model(f"local-dir:{folder}", pretrained=True, in_chans=1).eval()
    assert grey(images[:, :1]).shape == (2, model.num_classes)
    fresh = timm.create_model(f"local-dir:{folder}", pretrained=False).eval()
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    assert {name: tensor.shape for name, tensor in fresh.state_dict().items()} == shapes
    assert not torch.equal(fresh(images), model(images))


def test_features_are_those_of_the_pruned_network(saved):
    model, folder, images = saved
    net = timm.create_model(f"local-dir:{folder}", pretrained=True, features_only=True).eval()
    base = model.pretrained_cfg["architecture"]
    if "cifar" in base:
        expected, count = hooked_features(model, images), 3
    else:
        indices = timm.create_model(base, features_only=True).feature_info.out_indices
        expected, count = model.forward_intermediates(images, indices=indices, intermediates_only=True), len(indices)
    features = net(images)
    assert len(features) == len(expected) == count
    for feature, wanted, channels in zip(features, expected, net.feature_info.channels(), strict=True):
        exactly(feature, wanted)
        assert feature.shape[1] == channels
    last = timm.create_model(f"local-dir:{folder}", pretrained=True, features_only=True, out_indices=(-1,)).eval()
    exactly(last(images)[0], model_last(model, images, expected))


def hooked_features(model: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    found = []
    handles = [
        model.get_submodule(info["module"]).register_forward_hook(lambda module, args, output: found.append(output))
        for info in model.feature_info
    ]
    model(images)
    for handle in handles:
        handle.remove()
    return found


def model_last(model: nn.Module, images: torch.Tensor, expected: list[torch.Tensor]) -> torch.Tensor:
    if not hasattr(model, "forward_intermediates"):
        return expected[-1]
    return model.forward_intermediates(images, indices=(-1,), intermediates_only=True)[0]


def test_transformers_and_back(saved, tmp_path):
    model, folder, images = saved
    classifier = AutoModelForImageClassification.from_pretrained(folder).eval()
    nearly(classifier(images).logits, model(images))
    body = AutoModel.from_pretrained(folder).eval()
    nearly(body(images).last_hidden_state, model.forward_features(images))
    assert type(AutoImageProcessor.from_pretrained(folder)).__name__ == "TimmWrapperImageProcessor"
    classifier.save_pretrained(tmp_path / "again")
    exactly(timm.create_model(f"local-dir:{tmp_path / 'again'}", pretrained=True).eval()(images), model(images))
    exactly(from_pretrained(tmp_path / "again")(images), model(images))
    nearly(AutoModelForImageClassification.from_pretrained(tmp_path / "again").eval()(images).logits, model(images))


def test_timm_saves_it_and_all_load_that(saved, tmp_path):
    from timm.models import save_for_hf

    model, folder, images = saved
    save_for_hf(timm.create_model(f"local-dir:{folder}", pretrained=True), tmp_path, safe_serialization=True)
    exactly(timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()(images), model(images))
    exactly(from_pretrained(tmp_path)(images), model(images))
