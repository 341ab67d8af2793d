"""What is said where a dataset can't be opened: the true cause, and what to do about it."""

import errno
from pathlib import Path

import datasets
import pytest
import timm
from huggingface_hub.errors import LocalEntryNotFoundError
from PIL import Image

from eagleeye_hf import EagleEyeError, open_splits
from eagleeye_hf.data import source

MODEL = timm.create_model("resnet20_cifar")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("./datsets/foo", "there is no such folder; did you mean datasets/foo[?]"),
        ("datasets/fo/x", "there is no such folder; did you mean datasets/foo[?]"),
        (Path("fotos"), "there is no such folder; did you mean photos[?]"),
        ("/nowhere/at/all", "there is no such folder; check its path, or give a name on the Hub"),
        ("my photos", "there is no such folder"),
        ("file.jpg", "it is a file, but none of .csv, .tsv, .parquet, .json, .jsonl; give the folder"),
    ],
)
def test_a_mistyped_folder(tmp_path, monkeypatch, given, message):
    monkeypatch.chdir(tmp_path)
    for name in ("find_commit", "open_dataset"):
        monkeypatch.setattr(source, name, lambda *args: pytest.fail("the Hub was asked"))
    for folder in ("datasets/foo", "photos"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "file.jpg").write_bytes(b"")
    with pytest.raises(EagleEyeError, match=rf"`dataset={given}` can't be opened: {message}"):
        open_splits(given, MODEL)


def raised(error: BaseException, cause: BaseException | None = None):
    def load(*args, **options):
        raise error from cause

    return load


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("load", "message"),
    [
        (raised(FULL), r"\(OSError: .*No space left on device\); free some space, or put the cache elsewhere"),
        (
            raised(datasets.exceptions.DatasetGenerationError("An error occurred while generating the dataset"), FULL),
            r"\(DatasetGenerationError: .*, from OSError: .*No space left on device\); free some space",
        ),
        (raised(PermissionError(errno.EACCES, "Permission denied", "/cache")), "'/cache'.*the cache written"),
        (raised(datasets.exceptions.DatasetNotFoundError("no such dataset")), "give a name on the Hub that you may"),
        (raised(ConnectionError("Couldn't reach it"), LocalEntryNotFoundError("offline")), "check the connection"),
        (raised(RuntimeError("Dataset scripts are no longer supported")), "that `datasets` can read"),
    ],
)
def test_the_true_cause_is_told(tmp_path, monkeypatch, load, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(source, "find_commit", lambda *args: None)
    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(EagleEyeError, match=f"`dataset=user/photos` can't be opened.*{message}"):
        open_splits("user/photos", MODEL)


def test_a_name_that_is_nearly_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    monkeypatch.setattr(datasets, "load_dataset", raised(datasets.exceptions.DatasetNotFoundError("none")))
    with pytest.raises(EagleEyeError, match=r"if you meant a local folder, is it photos[?]"):
        open_splits("photo", MODEL)


def test_folders_without_classes(tmp_path):
    with pytest.raises(EagleEyeError, match="a folder holds parquet files, webdataset tars, or images in a folder per"):
        open_splits(tmp_path, MODEL)
    for split in ("train", "test"):
        (tmp_path / split / "cat").mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / split / "cat" / "0.png")
    with pytest.raises(EagleEyeError, match="no class labels; in an image folder, every class needs a folder of its"):
        open_splits(tmp_path, MODEL)
