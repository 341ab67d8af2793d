"""Checkpoints where the disk does not play along."""

import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import timm
import torch
from accelerate import Accelerator

from eagleeye_hf import EagleEyeError, FinetuneConfig, finetune_model, open_splits
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
