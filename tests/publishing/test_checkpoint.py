import json
import warnings

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from eagleeye_hf import EagleEyeError, Metrics, from_pretrained, save_pretrained, slice_model, trace_model
from eagleeye_hf.publishing.card import CardFacts, write_card
from tests.helpers import make_model, random_keep

FAMILIES = [
    "resnet20_cifar",
    "resnet18",
    "resnetblur18",
    "seresnext26d_32x4d",
    "res2net50_14w_8s",
    "resnest14d",
    "mobilenetv3_large_100",
    "tf_efficientnet_cc_b0_4e",
    "mixnet_s",
    "ghostnet_100",
    "regnety_002",
    "repvgg_a0",
    "densenet121",
    "vgg11_bn",
    "inception_next_atto",
]


def prune(name: str, **kwargs) -> tuple[nn.Module, torch.Tensor]:
    model = make_model(name, **kwargs)
    pixels = 32 if "cifar" in name else 64
    graph = trace_model(model, (model.pretrained_cfg["input_size"][0], pixels, pixels))
    return slice_model(model, graph, random_keep(graph, 0)), torch.randn(2, 3, pixels, pixels)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    model, images = prune("resnet20_cifar")
    folder = save_pretrained(
        model, tmp_path_factory.mktemp("checkpoint") / "new", label_names=[f"c{i}" for i in range(10)]
    )
    return folder, model, images


@pytest.mark.parametrize("name", FAMILIES)
def test_three_loaders_give_the_same_outputs(name, tmp_path):
    model, images = prune(name)
    save_pretrained(model, tmp_path)
    with torch.inference_mode():
        expected = model(images)
        torch.testing.assert_close(from_pretrained(tmp_path)(images), expected, rtol=0, atol=0)
        by_timm = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
        torch.testing.assert_close(by_timm(images), expected, rtol=0, atol=0)


def test_transformers_loads_it(checkpoint):
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    folder, model, images = checkpoint
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers' own
        loaded = AutoModelForImageClassification.from_pretrained(folder).eval()
        processor = AutoImageProcessor.from_pretrained(folder)
    with torch.inference_mode():
        torch.testing.assert_close(loaded(images).logits, model(images), rtol=0, atol=0)
    assert loaded.config.id2label[3] == "c3"
    assert type(processor).__name__ == "TimmWrapperImageProcessor"


def test_timm_builds_variants_of_it(checkpoint):
    folder, model, images = checkpoint
    assert timm.create_model(f"local-dir:{folder}", num_classes=4)(images).shape == (2, 4)
    assert timm.create_model(f"local-dir:{folder}", num_classes=0)(images).shape == (2, model.num_features)
    assert timm.create_model(f"local-dir:{folder}", pretrained=True, in_chans=1)(images[:, :1]).shape == (2, 10)


def test_a_loaded_model_is_pruned_and_saved_again(checkpoint, tmp_path):
    folder, _, images = checkpoint
    for number, model in enumerate(
        (from_pretrained(folder), timm.create_model(f"local-dir:{folder}", pretrained=True))
    ):
        graph = trace_model(model.eval())
        thinner = slice_model(model, graph, random_keep(graph, 5, 0.8))
        save_pretrained(thinner, tmp_path / str(number))
        with torch.inference_mode():
            torch.testing.assert_close(from_pretrained(tmp_path / str(number))(images), thinner(images))


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


def test_the_card_tells_what_was_measured_and_nothing_else(checkpoint):
    graph = trace_model(timm.create_model("resnet20_cifar"))
    metrics = {
        name: Metrics(top1=top1, top5=0.99, loss=0.4, num_images=100)
        for name, top1 in (("full", 0.9), ("vanilla", 0.12), ("adaptive", 0.58), ("fine-tuned", 0.875))
    }
    bare = write_card(CardFacts(base="resnet20_cifar", graph=graph, widths=graph.widths), "folder")
    assert "top-1" not in bare
    assert "latency" not in bare
    assert "model-index" not in bare
    facts = CardFacts(
        base="mobilenetv1_100.ra4_e3600_r224_in1k",
        graph=graph,
        widths=graph.widths,
        dataset="uoft-cs/cifar10",
        metrics=metrics,
        settings={"seed": 3},
        command="accelerate launch recipes/mbv1.py",
    )
    card = write_card(facts, "user/repo", on_hub=True)
    for text in ("value: 0.875", "12.00%", "58.00%", "87.50%", "base_model: timm/mobilenetv1_100.ra4_e3600_r224_in1k"):
        assert text in card
    for text in (
        "base_model_relation: finetune",
        "- uoft-cs/cifar10",
        "hf-hub:user/repo",
        "seed: 3",
        "torch 2",
        "`conv1`",
    ):
        assert text in card
