"""Datasets that leave things open: no test split, few images, uneven classes, tables of files."""

import csv
from pathlib import Path

import datasets
import numpy as np
import pytest
import timm

from eagleeye_hf import EagleEyeError, open_splits
from eagleeye_hf.data.measured import open_test
from eagleeye_hf.data.parting import choose_sizes, describe_imbalance
from tests.data.helpers import seen
from tests.helpers import digits_dataset

MODEL = timm.create_model("resnet20_cifar")


def write_folders(folder: Path, rows: datasets.Dataset) -> Path:
    for number, row in enumerate(rows):
        place = folder / f"kind {row['label']}" / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        row["image"].save(place)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """One folder of ten class folders."""
    return write_folders(tmp_path_factory.mktemp("photographs"), digits_dataset(100)["train"])


def test_one_folder_of_classes_is_divided_the_same_way_for_every_seed(folders):
    parts = []
    for seed in range(2):
        data = open_splits(folders, MODEL, seed=seed)
        sets = [seen(data.calibration), seen(data.holdout), seen(data.train, epoch=0), seen(data.test)]
        assert [len(images) for images in sets] == [16, 16, 48, 20]
        assert len(set.union(*map(set, sets))) == 100
        assert np.bincount(data.test.cached_batches()[0][1]).tolist() == [2] * 10
        assert data.test.split == "test"
        assert "has no labelled test images: 20 of its 100 training images are set apart for testing" in data.notes[0]
        parts.append(sets)
    assert set(parts[0][3]) == set(parts[1][3])
    assert set(parts[0][1]) != set(parts[1][1])
    measured = open_test(folders, MODEL, split="test")
    assert (measured.split, set(seen(measured.images))) == ("test", set(parts[0][3]))
    whole = open_test(folders, MODEL)
    assert whole.images.count() == 100
    assert "images that a run trained on among them; `--split test` takes the fifth" in whole.notes[0]


def test_copies_of_test_images_are_not_trained_on():
    rows = digits_dataset(60)["train"]
    rows = datasets.concatenate_datasets([rows, rows])
    data = open_splits(datasets.DatasetDict(train=rows), MODEL, calibration_images=10, holdout_images=12)
    tested = set(seen(data.test))
    held = [*seen(data.calibration), *seen(data.holdout)]
    assert tested
    assert not tested & set(held)
    assert not tested & set(seen(data.train, epoch=0))


def test_a_search_sets_the_same_images_apart(folders):
    assert set(seen(open_splits(folders, MODEL, needs_test=False).test)) == set(seen(open_splits(folders, MODEL).test))


def test_a_stream_without_test_images_is_told_to_be_downloaded():
    stream = datasets.IterableDatasetDict(train=digits_dataset(40)["train"].to_iterable_dataset())
    with pytest.raises(EagleEyeError, match=r"needs labelled test images .*`--streaming False`.* can be set apart"):
        open_splits(stream, MODEL)


@pytest.mark.parametrize(
    ("total", "given", "expected"),
    [
        (None, (None, None), (1024, 2048)),
        (1_000_000, (None, None), (1024, 2048)),
        (6_000, (None, None), (1024, 1200)),
        (240, (None, None), (48, 48)),
        (240, (100, None), (100, 48)),
        (240, (0, 0), (0, 0)),
        (3, (None, None), (1, 1)),
    ],
)
def test_few_images_shrink_what_is_set_aside(total, given, expected):
    assert choose_sizes(total, *given) == expected


def test_uneven_classes_are_said_to_be():
    labels = np.array([0] * 50 + [1] * 9 + [2] * 3)
    (note,) = describe_imbalance(labels, ["rose", "tulip", "fern"])
    assert note.startswith("classes are uneven: 50 training images of rose, 3 of fern")
    assert describe_imbalance(labels[20:], ["rose", "tulip"]) == []
    assert len(describe_imbalance(labels[:50], ["rose", "tulip"])) == 1


@pytest.mark.parametrize(("suffix", "delimiter"), [(".csv", ","), (".tsv", "\t")])
@pytest.mark.parametrize("absolute", [False, True])
def test_a_table_of_files(folders, tmp_path, suffix, delimiter, absolute):
    files = sorted(folders.rglob("*.png"))
    where = tmp_path if absolute else folders.parent
    table = where / f"table-{absolute}{suffix}"
    with table.open("w", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(["path", "label"])
        writer.writerows([str(f if absolute else f.relative_to(where)), f.parent.name] for f in files)
    data = open_splits(table, MODEL)
    table.unlink()
    assert data.label_names == tuple(f"kind {i}" for i in range(10))
    assert set(seen(data.test)) <= set(seen(open_test(folders, MODEL).images))
    assert sum(len(part.rows) for part in (data.calibration, data.holdout, data.train, data.test)) == 100


def test_a_folder_of_tables_has_their_splits(folders, tmp_path):
    files = sorted(folders.rglob("*.png"))
    for split, part in (("train", files[::2]), ("test", files[1::2])):
        rows = "".join(f"{file},{file.parent.name}\n" for file in part)
        (tmp_path / f"{split}.csv").write_text(f"file_name,label\n{rows}")
    data = open_splits(tmp_path, MODEL, calibration_images=5, holdout_images=20)
    assert (data.train.count(), data.test.count(), data.notes) == (25, 50, ())


def test_a_table_whose_files_are_missing(tmp_path):
    table = tmp_path / "table.csv"
    table.write_text("path,label\nphotos/1.jpg,a\nphotos/2.jpg,b\n")
    with pytest.raises(EagleEyeError, match=r"its column path names files such as photos/1.jpg, which are not in .*"):
        open_splits(table, MODEL)


def test_the_fifth_is_the_same_for_every_network(folders):
    """Whatever the order of its outputs, and without labels, where the dataset has some."""
    names = [f"kind {number}" for number in range(10)]
    expected = set(seen(open_splits(folders, MODEL, label_names=names).test))
    assert set(seen(open_splits(folders, MODEL, label_names=names[::-1]).test)) == expected
    taught = open_test(folders, MODEL, split="test", teacher=MODEL).images
    assert set(seen(taught.images)) == expected


def test_copies_of_a_test_split_are_not_trained_on():
    rows = digits_dataset(100)["train"]
    parts = datasets.DatasetDict(train=rows.select(range(60)), test=rows.select(range(40, 100)))
    data = open_splits(parts, MODEL, calibration_images=20, holdout_images=0)
    tested = set(seen(data.test))
    assert len(tested) == 60
    learned = [*seen(data.calibration), *seen(data.train, epoch=0)]
    assert len(learned) == 40
    assert not tested & set(learned)


def test_streams_that_the_caller_has_changed_tell_their_own_number(tmp_path):
    digits_dataset(100, 20)["train"].to_parquet(tmp_path / "train.parquet")
    digits_dataset(100, 20)["test"].to_parquet(tmp_path / "test.parquet")
    options = {"calibration_images": 20, "holdout_images": 0}

    def opened(change) -> datasets.IterableDatasetDict:
        found = datasets.load_dataset(str(tmp_path), streaming=True)
        told = {"train": datasets.SplitInfo("train", num_examples=100)}  # as datasets of the Hub do
        found["train"].info.splits = datasets.splits.SplitDict(told)
        return datasets.IterableDatasetDict(train=change(found["train"]), test=found["test"])

    assert open_splits(opened(lambda rows: rows), MODEL, **options).train.count() == 80
    for change in (lambda rows: rows.take(50), lambda rows: rows.filter(lambda row: row["label"] < 5)):
        data = open_splits(opened(change), MODEL, **options)
        assert data.train.count() == 30
        assert len(seen(data.train, epoch=0)) == 30


def test_a_transform_that_the_caller_has_set_does_not_matter():
    rows = digits_dataset(60, 20)
    expected = seen(open_splits(rows, MODEL, calibration_images=10, holdout_images=10).test)
    changed = rows.with_transform(lambda batch: {"pixel_values": [1 for _ in batch["image"]]})
    assert seen(open_splits(changed, MODEL, calibration_images=10, holdout_images=10).test) == expected
