import errno
import json
import os
import stat

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.utils import freeze, reparameterize_model
from torch import nn
from transformers import AutoModelForImageClassification

from eagleeye_hf import EagleEyeError, from_pretrained, save_pretrained, slice_model, trace_model
from eagleeye_hf.publishing import files
from tests.helpers import make_model, random_keep
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


def small_model(name, make=make_model):
    """A network for images of 64 px, so that checking it takes no time."""
    model = make(name, num_classes=10, pretrained_cfg_overlay={"input_size": (3, 64, 64)}).eval()
    assert model.pretrained_cfg["input_size"] == (3, 64, 64)
    return model


def load_everywhere(folder):
    """The network of a checkpoint, in eval mode, by each loader."""
    yield from_pretrained(folder)
    yield timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    yield AutoModelForImageClassification.from_pretrained(folder).timm_model.eval()


def assert_loads_the_same(model, folder, images):
    save_pretrained(model, folder)
    with torch.inference_mode():
        expected = model(images)
        for loaded in load_everywhere(folder):
            torch.testing.assert_close(loaded(images), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def replace(path, module):
    def change(model):
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, module)

    return change


def assign(kind, name, value):
    def change(model):
        for module in model.modules():
            if isinstance(module, kind):
                setattr(module, name, value)

    return change


def edit(path, name, value):
    return lambda model: setattr(model.get_submodule(path), name, value)


@pytest.mark.parametrize("random", [True, False], ids=["random tensors", "branches at zero"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (replace("maxpool", nn.Identity()), "maxpool is Identity, not MaxPool2d"),
        (edit("conv1", "stride", (1, 1)), r"conv1.stride is \(1, 1\), not \(2, 2\)"),
        (replace("act1", nn.GELU()), "act1 is GELU, not ReLU"),
        (replace("layer1.0.act1", nn.GELU()), "layer1.0.act1 is GELU, not ReLU"),
        (replace("layer4.1.act2", nn.ReLU6()), "layer4.1.act2 is ReLU6, not ReLU"),
        (assign(nn.BatchNorm2d, "eps", 0.1), "bn1.eps is 0.1, not 1e-05; layer1.0.bn1.eps is 0.1"),
        (edit("layer3.1.conv1", "padding_mode", "circular"), "layer3.1.conv1.padding_mode is 'circular', not 'zeros'"),
        (edit("layer2.0.conv2", "dilation", (2, 2)), r"layer2.0.conv2.dilation is \(2, 2\)|can't be run"),
        (lambda m: m.conv1.register_forward_hook(lambda module, args, y: y / 2), "a hook, or a method replaced"),
        (replace("fc", nn.Sequential(nn.Dropout(0.2), nn.Linear(512, 10))), r"it has fc.0 \(Dropout\), which .* lacks"),
        (replace("conv1", nn.Conv2d(3, 64, 3, 1, 1, bias=False)), r"conv1.weight would differ \(conv1.kernel_size is"),
    ],
)
def test_a_change_that_no_shape_shows_is_refused_by_name(change, message, random, tmp_path):
    torch.manual_seed(0)
    model = small_model("resnet18", make_model if random else timm.create_model)
    change(model)
    with pytest.raises(EagleEyeError, match=message):
        save_pretrained(model, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "pool"), [("resnet18", "max"), ("resnet18", "catavgmax"), ("mobilenetv3_small_100", "avgmax")]
)
def test_another_pooling_comes_along(name, pool, tmp_path):
    model = small_model(name)
    model.reset_classifier(10, pool)
    assert_loads_the_same(model.eval(), tmp_path, torch.randn(2, 3, 64, 64))
    assert json.loads((tmp_path / "config.json").read_text())["model_args"]["base_args"] == {"global_pool": pool}


@pytest.mark.parametrize(
    "name",
    [
        "repvgg_a0",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("mobileone_s0", "fastvit_t8", "repvit_m0_9", "repghostnet_050", "ghostnetv3_100")
        ),
    ],
)
def test_merged_branches_come_along(name, tmp_path):
    model, images = prune(name, num_classes=10)
    merged = reparameterize_model(model)
    assert set(merged.state_dict()) != set(model.state_dict())
    assert_loads_the_same(merged, tmp_path / "run", images)
    for number, again in enumerate(load_everywhere(tmp_path / "run")):
        if number < 2:  # transformers' is not one to save by
            assert_loads_the_same(again, tmp_path / str(number), images)


def test_frozen_statistics_load_as_batchnorm(tmp_path):
    model = small_model("resnet18")
    freeze(model, ["conv1", "bn1", "layer1"])
    assert_loads_the_same(model, tmp_path, torch.randn(2, 3, 64, 64))
    assert type(model.bn1).__name__ == "FrozenBatchNorm2d"
    assert type(from_pretrained(tmp_path).bn1) is nn.BatchNorm2d


@pytest.mark.parametrize(
    ("change", "shape"),
    [
        (replace("fc", nn.Linear(512, 7)), (2, 7)),
        (replace("fc", nn.Identity()), (2, 512)),
        (edit("", "drop_rate", 0.5), (2, 10)),
        (lambda model: nn.SyncBatchNorm.convert_sync_batchnorm(model), (2, 10)),
    ],
)
def test_what_changes_no_output_or_the_head_alone_is_saved(change, shape, tmp_path):
    model = small_model("resnet18")
    change(model)
    images = torch.randn(2, 3, 64, 64)
    save_pretrained(model, tmp_path)
    with torch.inference_mode():
        assert model(images).shape == shape
        torch.testing.assert_close(from_pretrained(tmp_path)(images), model(images))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_floating_point_type_is_kept(dtype, tmp_path):
    model, images = prune("resnet20_cifar")
    model, images = model.to(dtype), images.to(dtype)
    save_pretrained(model, tmp_path)
    loaded = from_pretrained(tmp_path)
    assert {tensor.dtype for tensor in loaded.state_dict().values() if tensor.is_floating_point()} == {dtype}
    with torch.inference_mode():
        torch.testing.assert_close(loaded(images), model(images))
        by_timm = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert by_timm.conv1.weight.dtype == torch.float32
    torch.testing.assert_close(by_timm.conv1.weight, model.conv1.weight.float())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_network_that_diverged_is_refused_by_the_tensors_name(value, tmp_path):
    model, _ = prune("resnet20_cifar")
    model.layer2[0].bn1.running_var[3] = value
    with pytest.raises(EagleEyeError, match=r"holds NaN or infinite values in layer2\.0\.bn1\.running_var;"):
        save_pretrained(model, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_metrics_that_are_no_numbers_are_null(tmp_path):
    save_pretrained(prune("resnet20_cifar")[0], tmp_path, provenance={"loss": [float("nan"), 1.0]})
    assert json.loads((tmp_path / "config.json").read_text())["eagleeye"] == {"loss": [None, 1.0]}
    with pytest.raises(EagleEyeError, match="`provenance` can't be written as JSON"):
        save_pretrained(prune("resnet20_cifar")[0], tmp_path / "other", provenance={"a": object()})


def test_saving_leaves_the_model_as_it_was(tmp_path):
    model, _ = prune("resnet20_cifar")
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    save_pretrained(model, tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_files_have_ordinary_permissions(umask, tmp_path):
    old = os.umask(umask)
    try:
        save_pretrained(prune("resnet20_cifar")[0], tmp_path / "run", card="# card")
    finally:
        os.umask(old)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "run").iterdir()}
    assert modes == dict.fromkeys(("model.safetensors", "config.json", "README.md"), 0o666 & ~umask)


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("times", [0, 1, 2])
def test_a_full_disk_leaves_nothing(call, times, tmp_path, monkeypatch):
    real, calls = getattr(os, call), []

    def fail(*arguments):
        calls.append(arguments)
        if len(calls) > times:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*arguments)

    monkeypatch.setattr(files.os, call, fail)
    with pytest.raises(EagleEyeError, match=r"`folder=.*run` can't be written: No space left on device") as caught:
        save_pretrained(prune("resnet20_cifar")[0], tmp_path / "deep" / "run", card="# card")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_card_of_somebody_else_stays(tmp_path):
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(EagleEyeError, match=r"holds a README\.md already"):
        save_pretrained(prune("resnet20_cifar")[0], tmp_path, card="# card")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]
