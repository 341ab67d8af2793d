"""Labels of every type, and splits without labels."""

import datasets
import numpy as np
import pytest
import timm

from eagleeye_hf import EagleEyeError, open_splits
from eagleeye_hf.data.measured import open_test
from tests.data.test_splits import stream
from tests.helpers import digits_dataset

MODEL = timm.create_model("resnet20_cifar")
COUNTS = {"calibration_images": 20, "holdout_images": 20}


def typed(split: datasets.Dataset, dtype: str, convert) -> datasets.Dataset:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value(dtype)})
    images = split.cast_column("image", datasets.Image(decode=False))["image"]
    labels = [convert(label) for label in split["label"]]
    return datasets.Dataset.from_dict({"image": list(images), "label": labels}, features=features)


def dataset(dtype: str, convert, test=None) -> datasets.DatasetDict:
    original = digits_dataset(80, 20)
    return datasets.DatasetDict(
        train=typed(original["train"], dtype, convert), test=typed(original["test"], dtype, test or convert)
    )


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("dtype", "convert"),
    [("int8", int), ("uint8", int), ("float16", float), ("float64", float), ("string", str), ("large_string", str)],
)
def test_whole_numbers_of_every_type(dtype, convert, streaming):
    data = dataset(dtype, convert)
    splits = open_splits(stream(data) if streaming else data, MODEL, **COUNTS)
    assert splits.label_names == tuple(map(str, range(10)))
    assert splits.test.cached_batches()[0][1].tolist() == [i % 10 for i in range(20)]
    assert np.bincount(splits.calibration.cached_batches()[0][1], minlength=10).sum() == 20


def test_truth_values():
    data = dataset("bool", lambda label: label % 2 == 1)
    splits = open_splits(data, timm.create_model("resnet20_cifar", num_classes=2), **COUNTS)
    assert splits.test.cached_batches()[0][1].tolist() == [i % 2 for i in range(20)]


def test_texts_of_digits_are_in_the_order_of_numbers():
    """Sorted as texts, 10 would come before 2."""
    original = digits_dataset(80, 20)
    parts = {key: typed(part, "string", lambda n: str(n + 2 if n > 1 else n)) for key, part in original.items()}
    model = timm.create_model("resnet20_cifar", num_classes=12)
    splits = open_splits(datasets.DatasetDict(parts), model, calibration_images=20, holdout_images=0)
    expected = [label + 2 if label > 1 else label for label in original["test"]["label"]]
    assert splits.test.cached_batches()[0][1].tolist() == expected


@pytest.mark.parametrize("streaming", [False, True])
def test_what_is_no_whole_number_is_refused(streaming):
    data = dataset("float32", lambda label: label + 0.5)
    with pytest.raises(
        EagleEyeError, match=r"an image has the label \d\.5, which is neither a whole number nor a name"
    ):
        open_splits(stream(data) if streaming else data, MODEL, **COUNTS)


def test_a_column_of_another_kind_is_refused():
    data = digits_dataset(80, 20)
    with pytest.raises(EagleEyeError, match=r"`label_column=image` of `dataset=dataset` holds no class labels"):
        open_splits(data, MODEL, label_column="image", **COUNTS)


UNLABELLED = {
    "-1": ("int64", int, lambda label: -1),
    "None": ("int64", int, lambda label: None),
    "not a number": ("float32", float, lambda label: float("nan")),
    "-1 as text": ("string", str, lambda label: "-1"),
    "empty text": ("string", str, lambda label: ""),
}


@pytest.mark.parametrize("kind", UNLABELLED)
def test_an_unlabelled_test_split(kind):
    data = dataset(*UNLABELLED[kind])
    parted = open_splits(data, MODEL, **COUNTS)
    assert (parted.test.count(), len(parted.train.rows)) == (16, 24)
    with pytest.raises(EagleEyeError, match=r"split `test` is unlabelled, since all of its 20 labels .* use a split"):
        open_test(data, MODEL)
    data["val"] = data["train"].select(range(30))
    assert open_splits(data, MODEL, **COUNTS).test.count() == 30


def test_an_unlabelled_split_that_lists_its_classes():
    data = digits_dataset(80, 20)
    features = data["test"].features
    data["test"] = data["test"].map(lambda row: {"label": -1}, features=features)
    assert open_splits(data, MODEL, **COUNTS).notes[0].startswith("`dataset=dataset` has no labelled test images: 16")
    data["test"] = data["test"].remove_columns("label")
    assert open_splits(data, MODEL, **COUNTS).test.count() == 16
    data["train"] = data["train"].map(lambda row: {"label": -1}, features=features)
    with pytest.raises(EagleEyeError, match="the split `train` is unlabelled, since all of its 80 labels"):
        open_splits(data, MODEL, needs_test=False, **COUNTS)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unlabelled_stream_tells_when_it_is_read(workers):
    none = open_splits(stream(dataset(*UNLABELLED["None"])), MODEL, **COUNTS)
    with pytest.raises(EagleEyeError, match="the split `test` is unlabelled, since none of its 20 images has a label"):
        list(none.test.batches(num_workers=workers))
    minus = open_splits(stream(dataset(*UNLABELLED["-1"])), MODEL, **COUNTS)
    with pytest.raises(EagleEyeError, match=r"an image has the label -1; with 10 classes they run from 0 to 9; -1 usu"):
        list(minus.test.batches(num_workers=workers))


@pytest.mark.parametrize("streaming", [False, True])
def test_some_missing_labels_are_skipped_and_counted(streaming):
    data = dataset("int64", lambda label: None if label == 3 else label)
    with pytest.warns(UserWarning, match="has no image of 1 of the 10 classes"):
        splits = open_splits(stream(data) if streaming else data, MODEL, **COUNTS)
    with pytest.warns(UserWarning, match=r"2 of 20 images of dataset can't be decoded .*: it has no label"):
        assert sum(len(labels) for _, labels in splits.test.batches()) == 18


def test_nothing_to_calibrate_with():
    splits = open_splits(digits_dataset(80, 20), MODEL, calibration_images=0, holdout_images=0)
    for part, name in ((splits.calibration, "calibration"), (splits.holdout, "holdout")):
        with pytest.raises(
            EagleEyeError, match=f"not one image to read; ask for some with `{name}_images`, which is 0"
        ):
            part.cached_batches()
