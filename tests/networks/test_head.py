"""Heads for other classes: known outputs are kept, unknown ones are new."""

import pytest
import timm
import torch

from eagleeye_hf import EagleEyeError, from_pretrained, save_pretrained
from eagleeye_hf.data.classes import find_outputs_of
from eagleeye_hf.networks.head import keep_outputs, replace_head
from eagleeye_hf.runs.adapt import KEPT, NEW, adapt_head
from tests.helpers import make_model

WORDS = ("tench", "English springer", "golf_ball", "PARACHUTE")
PLACES = (0, 217, 574, 701)


@pytest.mark.parametrize(
    ("names", "places"),
    [
        (WORDS, PLACES),
        (("n03888257", "n01440764"), (701, 0)),
        (("tench, Tinca tinca", "parachute, chute"), (0, 701)),
        (("tench", "my aunt"), None),
        (("crane", "tench"), None),  # a bird and a machine
        (("parachute", "chute"), None),  # the same output twice
    ],
)
def test_classes_of_imagenet_are_found_by_their_names(names, places):
    assert find_outputs_of(timm.create_model("test_efficientnet", num_classes=1000), names) == places


@pytest.mark.parametrize("classes", [10, 999])
def test_outputs_of_other_networks_are_not_guessed(classes):
    assert find_outputs_of(timm.create_model("resnet10t", num_classes=classes), ("tench", "parachute")) is None


@pytest.mark.parametrize("name", ["resnet10t", "mobilenetv3_small_050", "tf_efficientnet_lite0", "regnety_002"])
def test_kept_outputs_are_those_of_the_full_head(name, tmp_path):
    model = make_model(name, num_classes=1000).eval()
    images = torch.randn(2, 3, 64, 64)
    expected = model(images)[:, list(PLACES)]
    thin, head = adapt_head(model, WORDS)
    assert head == KEPT
    torch.testing.assert_close(thin.eval()(images), expected)
    save_pretrained(thin, tmp_path / "kept")
    loaded = from_pretrained(tmp_path / "kept")
    assert loaded.pretrained_cfg["label_names"] == list(WORDS)
    torch.testing.assert_close(loaded(images), expected)


def test_a_network_that_names_its_outputs_is_taken_at_its_word():
    model = make_model("resnet20_cifar").eval()
    model.pretrained_cfg = model.pretrained_cfg | {"label_names": [f"kind {i}" for i in range(10)]}
    images = torch.randn(2, 3, 32, 32)
    expected = model(images)[:, [7, 2]]
    model, head = adapt_head(model, ["kind 7", "kind 2"])
    assert head == KEPT
    torch.testing.assert_close(model(images), expected)


def test_heads_are_replaced_where_the_number_of_classes_differs_only():
    model = make_model("resnet20_cifar")
    assert adapt_head(model, [f"new {i}" for i in range(10)])[1] == ""
    assert adapt_head(model, None)[1] == ""
    replaced, head = adapt_head(model, ["a", "b", "c"])
    assert head == NEW
    assert replaced(torch.randn(2, 3, 32, 32)).shape == (2, 3)
    assert replaced.pretrained_cfg["label_names"] == ["a", "b", "c"]


def test_a_network_without_a_head_to_replace_is_named():
    with pytest.raises(EagleEyeError, match=r"`model` \(Conv2d\) can't be given 2 outputs"):
        replace_head(torch.nn.Conv2d(3, 3, 1), ["a", "b"])
    with pytest.raises(AttributeError):
        keep_outputs(torch.nn.Conv2d(3, 3, 1), [0], ["a"])
