"""MODEL arguments of every kind, and what is told of their images."""

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import save_for_hf

from eagleeye_hf import EagleEyeError, load_model
from eagleeye_hf.networks.config import InputConfig
from eagleeye_hf.networks.description import describe_model
from tests.helpers import make_model, run_command


@pytest.mark.parametrize("prefix", ["", "local-dir:"])
def test_a_folder_that_timm_saved(tmp_path, prefix, capsys):
    model = make_model("resnet10t", num_classes=7)
    save_for_hf(model, tmp_path, model_config={"num_classes": 7})
    loaded = load_model(f"{prefix}{tmp_path}").eval()
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(loaded(images), model.eval()(images))
    code, out, _ = run_command(capsys, "inspect", f"{prefix}{tmp_path}", "--image-size", "64")
    assert code == 0
    assert "input (3, 64, 64)" in out


def test_folders_that_are_no_checkpoints(tmp_path):
    with pytest.raises(EagleEyeError, match=r"has no config.json: it is no checkpoint.* give the file with `weights`"):
        load_model(str(tmp_path))
    with pytest.raises(EagleEyeError, match=r"`model=local-dir:nowhere`: there is no such folder"):
        load_model("local-dir:nowhere")


def test_what_is_told_of_images_replaces_what_the_network_says(tmp_path):
    file = tmp_path / "weights.safetensors"
    save_file(make_model("resnet10t", in_chans=1).state_dict(), file)
    inputs = InputConfig(image_size=96, mean=(0.1,), std=(0.2,), interpolation="bilinear", crop_pct=0.9)
    model = load_model("resnet10t", str(file), inputs)
    described = describe_model(model)
    assert (described.input_size, described.mean, described.std) == ((1, 96, 96), (0.1,), (0.2,))
    assert (model.pretrained_cfg["interpolation"], model.pretrained_cfg["crop_pct"]) == ("bilinear", 0.9)
    assert timm.create_model("resnet10t").pretrained_cfg["crop_pct"] != 0.9


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"in_chans": 4}, "`in_chans=4`, but the network reads images of 3 channels"),
        ({"mean": (0.1, 0.2)}, "`mean` has 2 numbers, but the network reads images of 3 channels; give one"),
    ],
)
def test_images_that_the_network_does_not_take(tmp_path, inputs, message):
    file = tmp_path / "weights.safetensors"
    save_file(make_model("resnet10t").state_dict(), file)
    with pytest.raises(EagleEyeError, match=message):
        load_model("resnet10t", str(file), InputConfig(**inputs))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"in_chans": 1, "mean": (0.1, 0.2)}, "`mean` has 2 numbers for `in_chans=1`"),
        ({"std": (0.0,)}, "`std` is a list, of which each is a number, above 0"),
        ({"crop_pct": 1.5}, r"`crop_pct` is a number, in \(0, 1\]"),
    ],
)
def test_what_images_can_not_be_like(inputs, message):
    with pytest.raises(EagleEyeError, match=message):
        InputConfig(**inputs)


def test_networks_of_a_fixed_size_keep_it(tmp_path):
    file = tmp_path / "weights.safetensors"
    model = timm.create_model("coatnet_nano_rw_224")
    assert model.pretrained_cfg["fixed_input_size"]
    save_file(model.state_dict(), file)
    with pytest.raises(EagleEyeError, match=r"`image_size=96`, but this network is built for 224 px; leave it out"):
        load_model("coatnet_nano_rw_224", str(file), InputConfig(image_size=96))
