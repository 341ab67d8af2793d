import json

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from eagleeye_hf import EagleEyeError, from_pretrained, save_pretrained, slice_model, trace_model
from tests.helpers import random_keep
from tests.publishing.make import prune


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    model, images = prune("resnet20_cifar")
    folder = save_pretrained(
        model, tmp_path_factory.mktemp("checkpoint") / "new", label_names=[f"c{i}" for i in range(10)]
    )
    return folder, model, images


def test_a_loaded_model_is_pruned_and_saved_again(checkpoint, tmp_path):
    folder, _, images = checkpoint
    for number, model in enumerate(
        (from_pretrained(folder), timm.create_model(f"local-dir:{folder}", pretrained=True))
    ):
        graph = trace_model(model.eval())
        thinner = slice_model(model, graph, random_keep(graph, 5, 0.8))
        save_pretrained(thinner, tmp_path / str(number))
        with torch.inference_mode():
            again = from_pretrained(tmp_path / str(number))
            torch.testing.assert_close(again(images), thinner(images))
        assert again.pretrained_cfg["label_names"][3] == "c3"


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("resnet26t", {"in_chans": 1}),
        ("tresnet_m", {"in_chans": 4, "num_classes": 3}),
        ("mobilenetv3_small_100", {"in_chans": 5, "num_classes": 0}),
        ("resnet18", {"output_stride": 8, "global_pool": "max", "drop_path_rate": 0.1}),
        ("resnet18", {"act_layer": "silu"}),
    ],
)
def test_what_a_model_was_made_with_comes_along(name, arguments, tmp_path):
    model, images = prune(name, **arguments)
    save_pretrained(model, tmp_path)
    with torch.inference_mode():
        expected = model(images)
        loaded = from_pretrained(tmp_path)
        torch.testing.assert_close(loaded(images), expected, rtol=0, atol=0)
        by_timm = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
        torch.testing.assert_close(by_timm(images), expected, rtol=0, atol=0)
    assert loaded.num_classes == model.num_classes
    assert loaded.pretrained_cfg["input_size"][0] == images.shape[1]


def test_what_cannot_come_along_is_refused(tmp_path):
    model, _ = prune("resnet50", base_width=32)
    with pytest.raises(EagleEyeError, match="`base_args` has 'base_width'; a checkpoint can only carry act_layer"):
        save_pretrained(model, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_is_written(checkpoint):
    folder, model, _ = checkpoint
    config = json.loads((folder / "config.json").read_text())
    assert config["architecture"] == "eagleeye_pruned"
    assert config["model_args"]["base"] == "resnet20_cifar"
    assert "num_classes" not in config["model_args"]
    assert config["num_classes"] == 10
    assert config["image_processor_type"] == "TimmWrapperImageProcessor"
    assert set(load_file(folder / "model.safetensors")) == set(model.state_dict())
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors"}


def test_a_taken_folder_is_refused(checkpoint, tmp_path):
    folder, model, _ = checkpoint
    with pytest.raises(EagleEyeError, match="holds a checkpoint already"):
        save_pretrained(model, folder)
    (tmp_path / "file").touch()
    with pytest.raises(EagleEyeError, match="is a file"):
        save_pretrained(model, tmp_path / "file")
    with pytest.raises(EagleEyeError, match=r"was not made by `timm.create_model`"):
        save_pretrained(nn.Linear(2, 2), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def damaged(folder, tmp_path, change):
    config = json.loads((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    change(config, tensors)
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path


def set_size(key, value):
    def change(config, tensors):
        config["model_args"]["sizes"]["conv1"][key] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c, t: t.pop("conv1.weight"), "don't fit config.json: conv1.weight is missing"),
        (lambda c, t: t.update(extra=torch.ones(1)), "extra is unknown"),
        (lambda c, t: t.update({"conv1.weight": torch.ones(3, 3, 3, 3)}), r"conv1.weight has shape \(3, 3, 3, 3\)"),
        (lambda c, t: c["model_args"].update(base="nothing"), "is no architecture of timm"),
        (lambda c, t: c["model_args"].update(base=3), "is no architecture of timm"),
        (lambda c, t: c["model_args"].update(sizes=[1]), "`sizes` maps modules"),
        (lambda c, t: c["model_args"]["sizes"].update({"x": {}}), "no module of the base model"),
        (set_size("out_channels", 0), "an integer from 1 to 16; got 0"),
        (set_size("out_channels", 17), "an integer from 1 to 16; got 17"),
        (set_size("out_channels", 2.5), "an integer from 1 to 16; got 2.5"),
        (set_size("out_channels", True), "an integer from 1 to 16; got True"),
        (set_size("forward", 1), "is no size of Conv2d"),
        (set_size("__class__", 1), "is no size of Conv2d"),
        (lambda c, t: c.pop("model_args"), "no `model_args`"),
        (lambda c, t: c.update(architecture="resnet18"), "not of a pruned network"),
    ],
)
def test_a_damaged_checkpoint_gets_one_clear_error(checkpoint, tmp_path, change, message):
    with pytest.raises(EagleEyeError, match=message):
        from_pretrained(damaged(checkpoint[0], tmp_path, change))


def test_files_that_are_none(checkpoint, tmp_path):
    with pytest.raises(EagleEyeError, match=r"has no config\.json"):
        from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(EagleEyeError, match="is not JSON"):
        from_pretrained(tmp_path)
    (tmp_path / "config.json").write_bytes((checkpoint[0] / "config.json").read_bytes())
    with pytest.raises(EagleEyeError, match=r"has no model\.safetensors"):
        from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(np.random.default_rng(0).bytes(100))
    with pytest.raises(EagleEyeError, match="is no safetensors file"):
        from_pretrained(tmp_path)
