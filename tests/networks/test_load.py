"""Weights as training scripts leave them. The oracle: the network that was saved."""

import argparse
import errno
import types

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from eagleeye_hf import EagleEyeError
from eagleeye_hf.networks.config import InputConfig
from eagleeye_hf.networks.load import adjust_input, load_from_file, load_pretrained
from tests.helpers import make_model


def check(loaded: nn.Module, model: nn.Module, size=(3, 32, 32)) -> None:
    images = torch.randn(2, *size)
    with torch.inference_mode():
        torch.testing.assert_close(loaded.eval()(images), model.eval()(images))


@pytest.mark.parametrize(
    ("name", "channels", "size"),
    [
        ("resnet18", 1, 64),
        ("resnet18", 4, 64),
        ("resnet20_cifar", 2, 32),
        ("mobilenetv3_small_050", 5, 64),
        ("densenet121", 1, 64),
        ("tresnet_m", 1, 64),  # its stem folds 4 x 4 pixels into channels
        ("test_vit", 1, 160),
    ],
)
def test_input_channels_and_classes_are_the_files(tmp_path, name, channels, size):
    model = make_model(name, in_chans=channels, num_classes=7)
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    loaded = load_from_file(name, str(tmp_path / "weights.safetensors"))
    assert loaded.num_classes == 7
    check(loaded, model, (channels, size, size))


def prefixed(state: dict, *prefixes: str) -> dict:
    return {"".join(prefixes) + key: value for key, value in state.items()}


LAYOUTS = {
    "plain": lambda state: state,
    "timm's training script": lambda state: {
        "epoch": 3,
        "arch": "resnet20_cifar",
        "args": argparse.Namespace(lr=0.1),
        "optimizer": {"state": {}, "param_groups": []},
        "state_dict": {key: torch.zeros_like(value) for key, value in state.items()},
        "state_dict_ema": state,
    },
    "DataParallel": lambda state: {"model": prefixed(state, "module.")},
    "compiled DDP": lambda state: {"model_state_dict": prefixed(state, "_orig_mod.", "module.")},
    "transformers": lambda state: prefixed(state, "timm_model."),
    "Lightning": lambda state: {"state_dict": prefixed(state, "model.", "backbone."), "hyper_parameters": {"lr": 1}},
    "AveragedModel": lambda state: {"model_ema": {"n_averaged": torch.tensor(3), **prefixed(state, "module.")}},
    "one in another": lambda state: {"model": {"state_dict": state}},
}


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_checkpoints_of_training_scripts(tmp_path, layout, old):
    model = make_model("resnet20_cifar", num_classes=7)
    for ending in ("pth", "pt", "bin", "ckpt"):
        file = tmp_path / f"weights.{ending}"
        torch.save(LAYOUTS[layout](model.state_dict()), file, _use_new_zipfile_serialization=not old)
        check(load_from_file("resnet20_cifar", str(file)), model)


def test_prefixes_in_safetensors_and_half_precision(tmp_path):
    model = make_model("resnet20_cifar", num_classes=7).half()
    save_file(prefixed(model.state_dict(), "module."), tmp_path / "weights.safetensors")
    check(load_from_file("resnet20_cifar", str(tmp_path / "weights.safetensors")), model.float())


def test_nothing_in_a_pickle_is_run(tmp_path):
    class Harmful:
        def __reduce__(self):
            return open, (str(tmp_path / "written"), "w")

    torch.save({"state_dict": {"weight": torch.zeros(1)}, "other": Harmful()}, tmp_path / "w.pth")
    with pytest.raises(EagleEyeError, match=r"w\.pth` holds more than tensors, .*safetensors.torch.save_file\(model"):
        load_from_file("resnet20_cifar", str(tmp_path / "w.pth"))
    assert not (tmp_path / "written").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"can't be read \(No such file or directory\); give a file of safetensors"),
        (b"# a page\n", r"can't be read as safetensors \(.*\), and it is no file of `torch.save`; give a whole file"),
        (b"", r"can't be read as safetensors \("),
        (b"PK\x03\x04 and so on", r"is a damaged file of `torch.save` \(RuntimeError"),
        ({"epoch": 3, "net": {"weight": torch.zeros(1)}}, r"has no weights where .* it holds epoch, net\. Save"),
        ([1, 2], r"it holds a list\. Save the `state_dict` alone"),
        ({}, r"it holds nothing\. Save"),
        (nn.Linear(1, 1), r"holds more than tensors, a whole network perhaps"),
        (
            {"weight": torch.zeros(1)},
            r"does not fit `model=resnet20_cifar`: .*; give the model that these weights were",
        ),
    ],
)
def test_bad_files_are_one_clear_line(tmp_path, content, message):
    file = tmp_path / "weights.pth"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        torch.save(content, file)
    with pytest.raises(EagleEyeError, match=message) as caught:
        load_from_file("resnet20_cifar", str(file))
    assert "\n" not in str(caught.value)


def test_a_network_without_trained_weights_is_told_as_such():
    with pytest.raises(EagleEyeError, match="`model=resnet20_cifar`: timm has no trained weights for it; give a file"):
        load_pretrained("resnet20_cifar")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device.; free some space"),
        (ConnectionError(), r"\(ConnectionError\); check the connection, or give a file with `weights`"),
    ],
)
def test_weights_that_can_not_be_had(monkeypatch, error, message):
    def create(*args, **options) -> types.NoneType:
        raise error

    monkeypatch.setattr(timm, "create_model", create)
    with pytest.raises(EagleEyeError, match=message):
        load_pretrained("resnet18")


@pytest.mark.parametrize(("name", "size"), [("tf_efficientnet_lite0", 160), ("resnet18", 100), ("resnet20_cifar", 24)])
def test_another_image_size_comes_with_its_last_feature_map(name, size):
    model = adjust_input(make_model(name), InputConfig(image_size=size))
    assert model.pretrained_cfg["input_size"] == (3, size, size)
    with torch.no_grad():
        features = model.forward_features(torch.zeros(1, 3, size, size))
    assert model.pretrained_cfg["pool_size"] in (None, tuple(features.shape[2:]))
