"""One split, to measure a network on."""

import datasets
import pytest
import timm

from eagleeye_hf import EagleEyeError
from eagleeye_hf.data.measured import open_test
from eagleeye_hf.data.splits import open_splits
from tests.data.helpers import seen
from tests.data.test_splits import stream
from tests.helpers import digits_dataset

MODEL = timm.create_model("resnet20_cifar")


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("present", "asked", "expected"),
    [
        (["train", "test", "validation"], None, "validation"),
        (["train", "eval", "dev"], None, "dev"),
        (["train", "val"], "train", "train"),
        (["test"], None, "test"),
        (["train"], None, "train"),
        (["odd"], None, "odd"),
        (["validation", "test"], "val", "validation"),
        (["validation", "test"], "eval", "test"),
    ],
)
def test_which_split_is_measured(present, asked, expected, streaming):
    rows = digits_dataset(60, 20)["test"]
    parts = {name: rows.select(range(10 + number)) for number, name in enumerate(present)}
    data = datasets.DatasetDict(parts)
    found = open_test(stream(data, 1) if streaming else data, MODEL, split=asked)
    assert found.split == expected
    assert found.label_names == tuple(f"class {i}" for i in range(10))
    assert len(seen(found.images)) == 10 + present.index(expected)


def test_the_images_are_those_of_open_splits():
    data = digits_dataset(60, 20)
    one = open_test(data["test"], MODEL)
    assert seen(one.images) == seen(open_splits(data, MODEL, calibration_images=4, holdout_images=0).test)
    assert one.split == "test"


@pytest.mark.parametrize("name", ["validation", "test", "val", "valid", "dev", "eval"])
def test_open_splits_knows_the_same_names(name):
    rows = digits_dataset(60, 20)
    data = datasets.DatasetDict({"train": rows["train"], name: rows["test"]})
    assert open_splits(data, MODEL, calibration_images=4, holdout_images=0).test.split == name


def test_splits_that_are_not_there():
    rows = digits_dataset(60, 20)["test"]
    data = datasets.DatasetDict(first=rows, second=rows)
    with pytest.raises(EagleEyeError, match="has the splits first, second; name the one to measure with `split`"):
        open_test(data, MODEL)
    with pytest.raises(EagleEyeError, match="`split=third` is no split of `dataset=dataset`; it has first, second"):
        open_test(data, MODEL, split="third")
    with pytest.raises(EagleEyeError, match="`dataset=dataset`: the split `test` has no images"):
        open_test(rows.select([]), MODEL)
