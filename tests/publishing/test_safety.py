"""A checkpoint comes from strangers: whatever it says, loading gives a model or one clear error."""

import copy
import json
import os
import pickle
import resource
import struct
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from eagleeye_hf import EagleEyeError, from_pretrained, save_pretrained
from eagleeye_hf.publishing.config import clean_pretrained_cfg
from tests.publishing.make import prune

FUZZ = settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("safety") / "run"
    return save_pretrained(prune("resnet20_cifar")[0], folder, label_names=[f"c{i}" for i in range(10)])


@pytest.fixture
def broken(checkpoint, tmp_path):
    """A copy of the checkpoint, and a function that writes another config into it."""
    for path in checkpoint.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((checkpoint / "config.json").read_text())

    def change(edit) -> os.PathLike:
        edited = copy.deepcopy(config)
        edit(edited)
        (tmp_path / "config.json").write_text(json.dumps(edited))
        return tmp_path

    return change


def load_or_explain(folder) -> None:
    """Whatever the files hold, there is a model or our error, of a readable length."""
    try:
        from_pretrained(folder)
    except EagleEyeError as error:
        assert len(str(error)) < 2000, str(error)[:3000]  # noqa: PT017


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=10**18, max_value=10**400)
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["resnet18", "../../etc/passwd", "__class__", "eagleeye_pruned", "conv1", "", "hf-hub:a/b"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


def places(value, path=()):
    """Every path into nested JSON."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


@FUZZ
@given(data=st.data())
def test_any_value_anywhere_in_the_config(checkpoint, tmp_path_factory, data):
    config = json.loads((checkpoint / "config.json").read_text())
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(sorted(places(config), key=str)))
        value = data.draw(json_values)
        if not path:
            config = value
            break
        target = config
        for key in path[:-1]:
            target = target[key]
        action = data.draw(st.sampled_from(["replace", "delete", "add"]))
        if action == "delete":
            del target[path[-1]]
        elif action == "add" and isinstance(target[path[-1]], dict):
            target[path[-1]][data.draw(st.text(max_size=10))] = value
        else:
            target[path[-1]] = value
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes((checkpoint / "model.safetensors").read_bytes())
    load_or_explain(folder)


@FUZZ
@given(text=st.binary(max_size=200) | st.integers(1, 200_000).map(lambda n: b"[" * n) | st.just(b"1" * 5000))
def test_any_bytes_as_the_config(checkpoint, tmp_path_factory, text):
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "config.json").write_bytes(text)
    load_or_explain(folder)


@FUZZ
@given(data=st.data())
def test_any_header_of_the_weights(checkpoint, tmp_path_factory, data):
    whole = (checkpoint / "model.safetensors").read_bytes()
    (size,) = struct.unpack("<Q", whole[:8])
    header, tensors = json.loads(whole[8 : 8 + size]), whole[8 + size :]
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(sorted(places(header), key=str)))
        if not path:
            continue
        target = header
        for key in path[:-1]:
            target = target[key]
        if data.draw(st.booleans()):
            target[path[-1]] = data.draw(json_values | st.sampled_from(["F64", "I8", "BF16", "F8_E4M3"]))
        else:
            del target[path[-1]]
    text = json.dumps(header).encode()
    length = data.draw(st.just(len(text)) | st.integers(0, 2**64 - 1))
    cut = data.draw(st.integers(0, 100) | st.just(0))
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
    (folder / "model.safetensors").write_bytes((struct.pack("<Q", length) + text + tensors)[: -cut or None])
    load_or_explain(folder)


@FUZZ
@given(place=st.integers(0, 6000), new=st.binary(min_size=1, max_size=8))
def test_any_bytes_in_the_header(checkpoint, tmp_path_factory, place, new):
    whole = bytearray((checkpoint / "model.safetensors").read_bytes())
    whole[place : place + len(new)] = new
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
    (folder / "model.safetensors").write_bytes(whole)
    load_or_explain(folder)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c.update(num_classes=10**12), "`num_classes=1000000000000` can't be in the config.json"),
        (lambda c: c.update(num_classes=-1), "`num_classes=-1`"),
        (lambda c: c["model_args"].update(in_chans=10**9), "`in_chans=1000000000`"),
        (lambda c: c["model_args"].update(base="eagleeye_pruned"), "is no architecture of timm"),
        (lambda c: c["model_args"].update(base="../resnet18"), "is no architecture of timm"),
        (lambda c: c["model_args"].update(base_args={"img_size": 10**6}), "`img_size=1000000`"),
        (lambda c: c["model_args"].update(base_args={"depth": 10**9}), "`base_args` has 'depth'"),
        (lambda c: c["model_args"].update(base_args={"checkpoint_path": "/etc/passwd"}), "has 'checkpoint_path'"),
        (lambda c: c["model_args"].update(base_args={"pretrained": True}), "has 'pretrained'"),
        (lambda c: c["model_args"].update(base_args={"pretrained_cfg": {"file": "x"}}), "has 'pretrained_cfg'"),
        (lambda c: c["model_args"].update(base_args={"act_layer": "os.system"}), "`act_layer='os.system'`"),
        (lambda c: c["model_args"].update(base_args={"act_layer": "nothing"}), "timm can't build"),
        (lambda c: c["model_args"].update(checkpoint_path="x"), "`model_args` has 'checkpoint_path'"),
        (lambda c: c.update(label_names=["one"]), "`label_names="),
        (lambda c: c.update(pretrained_cfg={"input_size": [3, 10**9, 1]}), "`input_size="),
        (lambda c: c.update(pretrained_cfg={"classifier": "../x"}), "`classifier="),
        (lambda c: c.update(eagleeye=[1]), "`eagleeye="),
    ],
)
def test_what_a_config_may_not_say(broken, edit, message):
    with pytest.raises(EagleEyeError, match=message):
        from_pretrained(broken(edit))


def test_what_timm_says_about_its_own_networks_can_be_kept():
    for name in timm.list_models(include_tags=True):
        clean_pretrained_cfg(timm.get_pretrained_cfg(name, allow_unregistered=False).to_dict())


def test_a_huge_base_costs_no_memory(broken):
    """The base is built without its values, and the file's header refuses it."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(EagleEyeError, match=r"don't fit config\.json"):
        from_pretrained(
            broken(lambda c: c["model_args"].update(base="regnety_1280", sizes={}, removed_blocks=[]))
        )  # 2.6 GB of weights
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000


def test_a_huge_config_is_not_read(broken):
    folder = broken(lambda config: None)
    os.truncate(folder / "config.json", 1 << 30)  # sparse: a gigabyte of nothing
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(EagleEyeError, match="larger than 16 MiB"):
        from_pretrained(folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


def test_a_header_that_promises_gigabytes_is_not_believed(broken):
    folder = broken(lambda config: None)
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 40) + b"{}")
    with pytest.raises(EagleEyeError, match="its header can't be 1099511627776 bytes long"):
        from_pretrained(folder)


def test_types_must_fit(broken, checkpoint):
    from safetensors.torch import load_file

    tensors = load_file(checkpoint / "model.safetensors")
    folder = broken(lambda config: None)
    save_file(tensors | {"conv1.weight": tensors["conv1.weight"].long()}, folder / "model.safetensors")
    with pytest.raises(EagleEyeError, match=r"conv1\.weight is of type I64, not float32"):
        from_pretrained(folder)
    save_file(tensors | {"conv1.weight": tensors["conv1.weight"].half()}, folder / "model.safetensors")
    assert from_pretrained(folder).conv1.weight.dtype == torch.float32  # the widest


class Bomb:
    def __reduce__(self):
        return os.system, ("exit 1",)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "model.pth"])
def test_a_pickle_is_never_read(broken, monkeypatch, name):
    """Neither by our loader nor, for an architecture of ours, by timm's."""
    ran = []
    monkeypatch.setattr(os, "system", ran.append)
    folder = broken(lambda config: None)
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(EagleEyeError):
        from_pretrained(folder)
    if name != "model.safetensors":
        with pytest.raises(EagleEyeError, match=r"has no model\.safetensors"):
            timm.create_model(f"local-dir:{folder}", pretrained=True)
    assert not ran


def test_timm_takes_no_other_file_from_the_config(broken):
    folder = broken(lambda c: c["pretrained_cfg"].update(hf_hub_filename="evil.bin", custom_load=True))
    model = timm.create_model(f"local-dir:{folder}", pretrained=True)
    assert model.pretrained_cfg["hf_hub_filename"] == "model.safetensors"
    assert not model.pretrained_cfg["custom_load"]
    with pytest.raises(EagleEyeError, match="`model_args` has"):
        timm.create_model(f"local-dir:{broken(lambda c: c['model_args'].update(depth=5))}")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c.update(num_classes=10**12), "`num_classes=1000000000000`"),
        (lambda c: c["model_args"].update(in_chans=10**9), "`in_chans=1000000000`"),
        (lambda c: c["pretrained_cfg"].update(input_size=[3, 2000, 2000], fixed_input_size=True), "`input_size="),
        (lambda c: c["model_args"]["sizes"]["conv1"].update(out_channels=10**9), "an integer from 1 to 16"),
    ],
)
def test_timm_too_is_told_before_memory_is_spent(broken, edit, message):
    with pytest.raises(EagleEyeError, match=message):
        timm.create_model(f"local-dir:{broken(edit)}", pretrained=True)


@pytest.mark.parametrize("special", ["pipe", "folder", "link to a device"])
def test_files_that_are_no_files(broken, special):
    folder = broken(lambda config: None)
    (folder / "model.safetensors").unlink()
    if special == "pipe":
        os.mkfifo(folder / "model.safetensors")
    elif special == "folder":
        (folder / "model.safetensors").mkdir()
    else:
        (folder / "model.safetensors").symlink_to("/dev/zero")
    with pytest.raises(EagleEyeError, match=r"has no model\.safetensors"):
        from_pretrained(folder)


SEEDS = range(300)


def damage(text: bytes, seed: int) -> bytes:
    """Bytes flipped, cut off or doubled, a value of another type, or a number that no network has."""
    random = np.random.default_rng(seed)
    kind = seed % 4
    if kind == 0:
        changed = bytearray(text)
        for place in random.integers(0, len(text), random.integers(1, 6)):
            changed[place] ^= 1 << int(random.integers(8))
        return bytes(changed)
    if kind == 1:
        cut, other = sorted(random.integers(0, len(text), 2))
        return text[:cut] if seed % 8 == 1 else text[:cut] + text[other:]
    config = json.loads(text)
    path = sorted((path for path in places(config) if path), key=str)
    path = path[int(random.integers(len(path)))]
    target = config
    for key in path[:-1]:
        target = target[key]
    values = ["x" * 9, "\ud800", -1, 0, 7, 10**400, 1.5, True, None, [], {}, [1, 2], {"a": 1}, [[[[]]]], "1e999"]
    target[path[-1]] = values[int(random.integers(len(values)))]
    return json.dumps(config).replace('"1e999"', "1e999").encode()


@pytest.mark.parametrize("seed", SEEDS)
def test_a_damaged_config_gives_an_error_or_a_network_that_runs(checkpoint, tmp_path, seed):
    text = damage((checkpoint / "config.json").read_bytes(), seed)
    (tmp_path / "config.json").write_bytes(text)
    os.link(checkpoint / "model.safetensors", tmp_path / "model.safetensors")
    try:
        model = from_pretrained(tmp_path)
    except EagleEyeError as error:
        assert str(tmp_path) in str(error), "the message names no file"  # noqa: PT017
        assert len(str(error)) < 2000  # noqa: PT017
        assert "\n" not in str(error)  # noqa: PT017
    else:
        with torch.inference_mode():
            assert model(torch.randn(1, 3, 32, 32)).shape == (1, 10)


LOAD_HUGE = """
import json, resource, sys, warnings
warnings.simplefilter("ignore")
import eagleeye_hf, timm
from transformers import AutoModelForImageClassification
kind, folder = sys.argv[1:]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    if kind == "transformers":
        AutoModelForImageClassification.from_pretrained(folder)
    else:
        timm.create_model(f"local-dir:{folder}", pretrained=kind == "timm")
except Exception as error:
    print(type(error).__name__, error)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, "KB")
"""


@pytest.mark.parametrize("kind", ["timm", "timm without weights", "transformers"])
def test_a_huge_base_costs_no_memory_in_other_loaders(broken, kind):
    def edit(config):
        config["model_args"].update(base="regnety_1280", sizes={}, removed_blocks=[])  # 2.6 GB of weights
        config["num_features"] = 7392

    command = [sys.executable, "-c", LOAD_HUGE, kind, str(broken(edit))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert any(line.startswith("EagleEyeError") and "missing" in line for line in lines), done.stdout
    assert int(lines[-1].split()[0]) < 300_000


def test_a_huge_base_cut_to_nothing_costs_no_memory(tmp_path):
    """The header fits the sizes, and timm loads it: only what is left of the base is built."""
    code = """
import resource, sys, tempfile, warnings
warnings.simplefilter("ignore")
import timm
from eagleeye_hf.publishing.claims import rebuild_empty
from eagleeye_hf.publishing.rebuild import build_lean, changed_sizes
base = {"base": "regnety_1280"}
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
sizes = {"final_conv": {}, "head.fc": {"in_features": 1}}
model = build_lean("regnety_1280", {name: {"out_channels": 1, "in_channels": 1, "groups": 1} for name, module in
    rebuild_empty(base, 10).named_modules() if type(module).__name__ == "Conv2d"}, num_classes=10)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 300_000


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda c: (c["model_args"]["sizes"][""].update(num_features=7), c.update(num_features=7)),
            "gives 7 for num_features, but .* has 32",
        ),
        (lambda c: c["model_args"]["sizes"][""].update(head_hidden_size=7), "gives 7 for head_hidden_size"),
        (lambda c: c["model_args"]["sizes"][""].update({"feature_info.1.num_chs": 7}), "7 for feature_info.1.num_chs"),
        (lambda c: c.update(num_features=7), "`num_features=7`, but the network has 32"),
        (lambda c: c["model_args"]["sizes"]["layer2.0.shortcut"].update(pad_front=0, pad_back=0), "don't fit together"),
        (lambda c: c["pretrained_cfg"].update(input_size=[3, 1, 4096]), None),
    ],
)
def test_what_a_config_says_of_channels_is_what_its_network_has(broken, edit, message):
    folder = broken(edit)
    if message is None:
        from_pretrained(folder)
        return
    with pytest.raises(EagleEyeError, match=message):
        from_pretrained(folder)
    if "`num_features" not in message:  # which timm does not read
        with pytest.raises(EagleEyeError, match=message):
            timm.create_model(f"local-dir:{folder}")
