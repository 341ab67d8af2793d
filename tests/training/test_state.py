"""Checkpoints where the disk does not play along."""

import random
import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from eagleeye_hf import EagleEyeError, FinetuneConfig, finetune_model, open_splits
from eagleeye_hf.training import loop
from eagleeye_hf.training import state as module
from eagleeye_hf.training.state import Checkpoints
from tests.helpers import digits_dataset

CONFIG = FinetuneConfig(epochs=3, batch_size=80, lr=0.01)


@pytest.fixture(scope="module")
def train():
    model = timm.create_model("resnet20_cifar")
    return open_splits(digits_dataset(), model, calibration_images=20, holdout_images=20).train


def new_model():
    torch.manual_seed(0)
    return timm.create_model("resnet20_cifar")


def test_a_folder_that_can_not_be_written_is_told_before_training(train, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(EagleEyeError, match=r"`checkpoint=.*file/training` can't be written"):
        finetune_model(new_model(), train, CONFIG, checkpoint=tmp_path / "file" / "training")
    usage = namedtuple("usage", "total used free")(1 << 30, 1 << 30, 1 << 20)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(EagleEyeError, match=r"checkpoints need about 16 MB, and the disk has 1 MB free"):
        finetune_model(new_model(), train, CONFIG, checkpoint=tmp_path / "training")


def test_a_disk_that_fills_up_keeps_the_last_checkpoint(train, tmp_path, monkeypatch):
    """The second checkpoint breaks off in the middle of a file; with room again, training ends as it would have."""
    whole = finetune_model(new_model(), train, CONFIG)
    save_state = Accelerator.save_state
    saves = []

    def full(self, folder):
        saves.append(save_state(self, folder))
        if len(saves) == 2:
            next(Path(folder).glob("*.safetensors")).write_bytes(b"half")
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(Accelerator, "save_state", full)
    with pytest.raises(EagleEyeError, match=r"can't be written any more .*No space left.*the last checkpoint is whole"):
        finetune_model(new_model(), train, CONFIG, checkpoint=tmp_path / "training")
    monkeypatch.undo()
    assert [path.name for path in (tmp_path / "training").iterdir()] == ["step-000000002"]
    resumed = finetune_model(new_model(), train, CONFIG, checkpoint=tmp_path / "training")
    for key, tensor in resumed.state_dict().items():
        assert torch.equal(tensor, whole.state_dict()[key])


def test_a_checkpoint_that_was_never_finished_is_passed_over(train, tmp_path):
    folder = tmp_path / "training"
    whole = finetune_model(new_model(), train, CONFIG, checkpoint=folder)
    newest = max(folder.glob("step-*"))
    shutil.copytree(newest, folder / "step-000000099.new")
    (folder / "step-000000099.new" / "rest.pt").unlink()
    again = finetune_model(new_model(), train, CONFIG, checkpoint=folder)
    assert all(torch.equal(tensor, again.state_dict()[key]) for key, tensor in whole.state_dict().items())
    assert Checkpoints(None, CONFIG, Accelerator()).load() is None


EVERYTHING = replace(CONFIG, save_steps=1, mixup=0.2, ema=0.9)
"""So that a missing part of the state changes the result."""


def train_everything(train, folder):
    set_seed(1)
    torch.manual_seed(0)
    model = timm.create_model("resnet20_cifar", drop_rate=0.3)
    set_seed(1)
    return finetune_model(model, train, EVERYTHING, checkpoint=folder, teacher=new_model())


@pytest.fixture(scope="module")
def killed(train, tmp_path_factory):
    """The checkpoints that a killed run left, and the weights of one that was not."""
    folder = tmp_path_factory.mktemp("killed") / "training"
    train_on = loop.Training._train_on

    def dies(self, *args):
        if (self.epoch, self.step) == (2, 1):
            raise KeyboardInterrupt
        train_on(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Training, "_train_on", dies)
        with pytest.raises(KeyboardInterrupt):
            train_everything(train, folder)
    assert [path.name for path in sorted(folder.iterdir())] == ["step-000000004", "step-000000005"]
    return folder, train_everything(train, None).state_dict()


FILES = ["manifest.json", "model.safetensors", "optimizer.bin", "random_states_0.pkl", "rest.pt"]


def damage(path: Path, how: str, luck: random.Random) -> None:
    data = bytearray(path.read_bytes())
    if how == "delete":
        path.unlink()
        return
    if how == "flip":
        data[luck.randrange(len(data))] ^= 1 << luck.randrange(8)
    path.write_bytes(data if how == "flip" else data[: luck.randrange(len(data))] if how == "cut" else b"")


DAMAGES = [*range(10), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(10, 30))]
"""The first ten are of every file, in the newest checkpoint, and twice in both."""


@pytest.mark.parametrize("seed", DAMAGES)
def test_a_damaged_checkpoint_gives_way_to_the_older_one_or_to_the_start(train, killed, tmp_path, capsys, seed):
    luck = random.Random(seed)
    folder, expected = killed
    shutil.copytree(folder, tmp_path / "training")
    newest, older = sorted((tmp_path / "training").iterdir(), reverse=True)
    assert sorted(path.name for path in newest.iterdir()) == FILES
    places = [newest, older] if seed % 4 == 3 else [newest]
    for place in places:
        damage(place / FILES[seed % 5], luck.choice(["delete", "flip", "cut", "empty"]), luck)
    trained = train_everything(train, tmp_path / "training")
    assert all(torch.equal(tensor, expected[key]) for key, tensor in trained.state_dict().items())
    told = capsys.readouterr().err
    assert told.count("is damaged (") == len(places)
    assert "step-000000005 is damaged (" in told
    assert ("training starts from the beginning" in told) == (len(places) == 2)
    assert ("going on in epoch 3 after step 0" in told) == (len(places) == 1)
    left = sorted(path.name for path in (tmp_path / "training").iterdir() if not path.name.startswith("damaged-"))
    assert left == ["step-000000005", "step-000000006"]


def test_a_damaged_checkpoint_does_not_hide_other_settings(train, killed, tmp_path):
    shutil.copytree(killed[0], tmp_path / "training")
    (tmp_path / "training" / "step-000000005" / "rest.pt").write_bytes(b"")
    with pytest.raises(EagleEyeError, match=r"holds training with other settings \(ema 0.9\)"):
        finetune_model(new_model(), train, replace(EVERYTHING, ema=0.8), checkpoint=tmp_path / "training")


def test_a_checkpoint_of_another_network_is_refused(train, killed, tmp_path):
    shutil.copytree(killed[0], tmp_path / "training")
    model = timm.create_model("resnet56_cifar")
    with pytest.raises(EagleEyeError, match=r"holds training of another network \(.*; choose another output folder"):
        finetune_model(model, train, EVERYTHING, checkpoint=tmp_path / "training")


def test_a_checkpoint_is_on_the_disk_before_it_gets_its_name(train, tmp_path, monkeypatch):
    """Every file of it is synchronised, then the folder, then it is renamed."""
    events = []
    monkeypatch.setattr(module.os, "fsync", lambda place: events.append(Path(f"/proc/self/fd/{place}").readlink().name))
    move = module.os.replace
    monkeypatch.setattr(module.os, "replace", lambda old, new: (move(old, new), events.append("renamed")))
    finetune_model(new_model(), train, replace(CONFIG, epochs=1), checkpoint=tmp_path / "training")
    before = ["model.safetensors", "optimizer.bin", "random_states_0.pkl", "rest.pt", "manifest.json"]
    assert events == [*before, "step-000000002.new", "renamed", "training"]
