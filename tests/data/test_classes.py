"""Classes are matched by their names. The oracle: a network that classifies without fault, so top-1 has to be 100%."""

import copy

import datasets
import numpy as np
import pytest
import timm
import torch
from torch import nn

from eagleeye_hf import EagleEyeError, evaluate_model, open_splits
from eagleeye_hf.data.columns import find_classes
from eagleeye_hf.data.measured import open_test
from eagleeye_hf.data.source import OpenedDataset
from tests.data.test_splits import stream
from tests.helpers import digits_dataset

NAMES = tuple(f"class {i}" for i in range(10))
SHUFFLED = tuple(NAMES[i] for i in np.random.default_rng(3).permutation(10))
COUNTS = {"calibration_images": 20, "holdout_images": 20}


class Faultless(nn.Module):
    """Finds the bright rows of `digits_dataset`; its outputs stand for the classes in this order."""

    def __init__(self, outputs=NAMES, **config) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.rows = [3 * NAMES.index(name) + 1 for name in outputs]
        self.num_classes, self.pretrained_cfg = 10, {"input_size": (3, 32, 32), **config}

    def forward(self, images):
        return self.weight * images.mean((1, 3))[:, self.rows]


def relabelled(split: datasets.Dataset, names=None, text: bool = False) -> datasets.Dataset:
    """The same labels listed in another order, or as texts."""
    texts = [NAMES[label] for label in split["label"]]
    feature = datasets.Value("string") if text else datasets.ClassLabel(names=list(names))
    labels = texts if text else [names.index(name) for name in texts]
    features = datasets.Features({"image": datasets.Image(), "label": feature})
    images = split.cast_column("image", datasets.Image(decode=False))["image"]
    return datasets.Dataset.from_dict({"image": list(images), "label": labels}, features=features)


def top1(images, model) -> float:
    return evaluate_model(model, images.batches()).top1


def unmoved(splits):
    """The training images under the evaluation transform."""
    images = copy.copy(splits.train)
    images.preprocessing = splits.test.preprocessing
    return images


KINDS = {
    "listed": lambda split: relabelled(split, NAMES),
    "listed in another order": lambda split: relabelled(split, NAMES[::-1]),
    "text": lambda split: relabelled(split, text=True),
}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("train", KINDS)
@pytest.mark.parametrize("test", ["listed", "text"])
def test_classes_are_matched_by_name(train, test, given, streaming):
    """Whatever the order on either side, and even where training and test split differ."""
    original = digits_dataset(80, 20)
    data = datasets.DatasetDict(train=KINDS[train](original["train"]), test=KINDS[test](original["test"]))
    data = stream(data, 2) if streaming else data
    model = Faultless(SHUFFLED) if given else Faultless(SHUFFLED, label_names=list(SHUFFLED))
    splits = open_splits(data, model, label_names=SHUFFLED if given else None, **COUNTS)
    assert splits.label_names == SHUFFLED
    for part in (splits.calibration, splits.holdout, unmoved(splits), splits.test):
        assert top1(part, model) == 1
    alone = open_test(data, model, split="train", label_names=SHUFFLED if given else None)
    assert alone.label_names == SHUFFLED
    assert top1(alone.images, model) == 1


def test_without_names_of_the_model_the_order_is_the_datasets():
    data = digits_dataset(80, 20)
    data["test"] = relabelled(data["test"], NAMES[::-1])
    splits = open_splits(data, Faultless(), **COUNTS)
    assert splits.label_names == NAMES
    assert top1(unmoved(splits), Faultless()) == top1(splits.test, Faultless()) == 1


def test_names_are_the_same_in_another_spelling():
    names = [name.upper().replace(" ", "_") for name in SHUFFLED]
    for kind in KINDS.values():
        data = datasets.DatasetDict({split: kind(rows) for split, rows in digits_dataset(80, 20).items()})
        model = Faultless(SHUFFLED, label_names=names)
        splits = open_splits(data, model, **COUNTS)
        assert splits.label_names == tuple(names)
        assert top1(splits.test, model) == 1


def test_names_of_wrapped_networks_descriptions_and_transformers():
    data = digits_dataset(80, 20)
    described = Faultless(
        SHUFFLED, label_names=[f"n{i}" for i in range(10)], label_descriptions={f"n{i}": SHUFFLED[i] for i in range(10)}
    )
    wrapped = nn.DataParallel(Faultless(SHUFFLED, label_names=SHUFFLED))
    transformers = Faultless(SHUFFLED)
    transformers.config = type("Config", (), {"id2label": dict(enumerate(SHUFFLED))})()
    for model in (described, wrapped, transformers):
        splits = open_splits(data, model, **COUNTS)
        assert top1(splits.test, model) == 1
    transformers.config.id2label = {i: f"LABEL_{i}" for i in range(10)}
    assert open_splits(data, transformers, **COUNTS).label_names == NAMES


def test_numbers_as_names_say_nothing():
    """Models that were trained on numbers count their outputs; that is no contradiction to names."""
    data = digits_dataset(80, 20)
    counted = Faultless(label_names=[str(i) for i in range(10)])
    splits = open_splits(data, counted, **COUNTS)
    assert splits.label_names == NAMES
    assert top1(splits.test, counted) == 1
    feature = datasets.ClassLabel(num_classes=10)
    numbered = datasets.DatasetDict({split: rows.cast_column("label", feature) for split, rows in data.items()})
    assert open_splits(numbered, Faultless(label_names=NAMES), **COUNTS).label_names == NAMES


@pytest.mark.parametrize("kind", ["listed", "text"])
def test_other_names_are_a_question(kind):
    data = datasets.DatasetDict({split: KINDS[kind](rows) for split, rows in digits_dataset(80, 20).items()})
    model = Faultless(label_names=[*NAMES[:9], "tench"])
    message = (
        r"`dataset=dataset` has other classes than the model: it has class 0, .*, \.\.\., the model has class 0, .* "
        r"\(only in the dataset: class 9; only in the model: tench\)\. Which class is which output\? Give the "
        r"dataset's names in the order of the model's outputs with `label_names`"
    )
    for streaming in (False, True):
        if kind == "text" and streaming:
            continue  # a stream of texts does not tell which there are; a label that nobody knows is refused later
        with pytest.raises(EagleEyeError, match=message):
            open_splits(stream(data) if streaming else data, model, **COUNTS)
        with pytest.raises(EagleEyeError, match=message):
            open_test(stream(data) if streaming else data, model)
    answered = open_splits(data, model, label_names=NAMES, **COUNTS)
    assert top1(answered.test, model) == 1
    with pytest.raises(EagleEyeError, match=r"other classes than `label_names`.* only in `label_names`: cat"):
        open_splits(data, model, label_names=[*NAMES[:9], "cat"], **COUNTS)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (NAMES[:3], "`label_names` has 3 names, but the model has 10 outputs"),
        ([*NAMES[:9], "class 0"], "`label_names` has class 0 more than once"),
        ("class", "`label_names` is a list of texts, one per output of the model; got 'class'"),
    ],
)
def test_bad_label_names(names, message):
    for call in (open_splits, open_test):
        with pytest.raises(EagleEyeError, match=message):
            call("/nowhere", Faultless(), label_names=names)


def test_a_test_split_of_a_part_of_the_classes():
    data = digits_dataset(80, 20)
    few = data["test"].filter(lambda row: row["label"] in (2, 7))
    data["test"] = relabelled(few, ("class 7", "class 2"))
    assert top1(open_splits(data, Faultless(), **COUNTS).test, Faultless()) == 1
    alone = open_test(data, Faultless(SHUFFLED, label_names=SHUFFLED))
    assert top1(alone.images, Faultless(SHUFFLED)) == 1
    with pytest.raises(EagleEyeError, match="has 2 classes, but the model has 10 outputs"):
        open_test(data, Faultless())
    data["train"] = data["test"]
    with pytest.raises(EagleEyeError, match="has 2 classes, but the model has 10 outputs"):
        open_splits(data, Faultless(label_names=NAMES), **COUNTS)


def test_a_single_class():
    data = digits_dataset(80, 20)
    one = data["train"].filter(lambda row: row["label"] == 4)
    for only in (relabelled(one, ("class 4",)), relabelled(one, text=True)):
        with pytest.raises(EagleEyeError, match="has a single class, class 4; a classifier needs two or more"):
            open_splits(datasets.DatasetDict(train=only, test=only), Faultless(), **COUNTS)


def test_folders_that_are_numbers_are_in_the_order_of_numbers():
    """Sorted as texts, 10 would come before 2."""
    rows = digits_dataset(80, 20)
    names = sorted(map(str, range(12)))
    order = {str(number): place for place, number in enumerate(names)}
    rows = rows.cast_column("label", datasets.Value("int64"))
    labelled = rows.map(lambda row: {"label": order[str(row["label"] + 2 if row["label"] > 1 else row["label"])]})
    listed = labelled.cast_column("label", datasets.ClassLabel(names=names))
    data = open_splits(listed, timm.create_model("resnet20_cifar", num_classes=12), holdout_images=0)
    assert data.label_names == tuple(map(str, range(12)))
    expected = [label + 2 if label > 1 else label for label in rows["test"]["label"]]
    assert data.test.cached_batches()[0][1].tolist() == expected


def test_numbers_with_gaps_are_names_or_refused():
    rows = digits_dataset(60, 20)["train"].cast_column("label", datasets.Value("int64"))
    years = rows.map(lambda row: {"label": 2000 + row["label"]})
    with pytest.raises(EagleEyeError, match=r"are 10 different numbers up to 2,009.*`--adapt-epochs 0`"):
        find_classes(OpenedDataset(splits=datasets.DatasetDict(train=years), name="photographs"))
    texts = datasets.DatasetDict(train=years.cast_column("label", datasets.Value("string")))
    names = find_classes(OpenedDataset(splits=texts, name="photographs"))
    assert names == tuple(map(str, range(2000, 2010)))
    data = open_splits(texts, timm.create_model("resnet20_cifar"), calibration_images=10, holdout_images=0)
    assert data.label_names == names
