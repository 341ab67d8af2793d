import io
from itertools import product

import datasets
import numpy as np
import pytest
import timm
import torch
from PIL import Image

from eagleeye_hf import EagleEyeError, open_splits
from eagleeye_hf.data.batches import Portion
from tests.data.helpers import seen
from tests.helpers import SHARED, digits_dataset, needs_shared


@pytest.fixture(scope="module")
def model():
    return timm.create_model("resnet20_cifar")


def stream(data: datasets.DatasetDict, shards: int = 3) -> datasets.IterableDatasetDict:
    return datasets.IterableDatasetDict({k: part.to_iterable_dataset(num_shards=shards) for k, part in data.items()})


def twice(data: datasets.DatasetDict) -> datasets.DatasetDict:
    data["train"] = datasets.concatenate_datasets([data["train"], data["train"]])
    return data


@pytest.mark.parametrize("opened", [digits_dataset, lambda: stream(digits_dataset())], ids=["map", "stream"])
def test_splits_are_disjoint_and_whole(model, opened):
    data = open_splits(opened(), model, calibration_images=30, holdout_images=40)
    parts = [seen(part) for part in (data.calibration, data.holdout, data.test)] + [seen(data.train, epoch=0)]
    assert [len(part) for part in parts] == [30, 40, 40, 130]
    assert len(set.union(*map(set, parts))) == 240
    assert data.train.count() == 130
    assert data.label_names == tuple(f"class {i}" for i in range(10))


def test_the_seed_decides(model):
    for opened in (digits_dataset(), stream(digits_dataset())):
        first, again, other = (
            seen(open_splits(opened, model, calibration_images=20, holdout_images=20, seed=seed).holdout)
            for seed in (0, 0, 1)
        )
        assert first == again != other


@pytest.mark.parametrize("opened", [lambda: twice(digits_dataset()), lambda: stream(twice(digits_dataset()))])
def test_duplicates_of_held_out_images_are_not_trained_on(model, opened):
    splits = open_splits(opened(), model, calibration_images=30, holdout_images=30)
    held = set(seen(splits.calibration)) | set(seen(splits.holdout))
    assert len(held) == 60
    trained = seen(splits.train, epoch=3)
    assert len(set(trained)) == 140
    assert not held & set(trained)


def test_classes_are_held_out_in_proportion(model):
    data = digits_dataset(400, 20)
    labels = np.array(data["train"]["label"])
    rare = np.concatenate([np.flatnonzero(labels != 3), np.flatnonzero(labels == 3)[:8]])  # sorted, and one class rare
    data["train"] = data["train"].select(rare[np.argsort(labels[rare], kind="stable")])
    for opened in (data, stream(data)):
        splits = open_splits(opened, model, calibration_images=40, holdout_images=80)
        for part, num in ((splits.calibration, 40), (splits.holdout, 80)):
            counts = np.bincount(part.cached_batches()[0][1], minlength=10)
            assert counts[3] in (0, 1, 2) if num == 40 else counts[3] in (1, 2, 3)
            assert all(abs(count - num * 40 / 368) <= 2.5 for count in np.delete(counts, 3))


def test_a_missing_class_is_told(model):
    with pytest.warns(UserWarning, match=r"`holdout_images=4` has no image of 6 of the 10 classes \(class"):
        open_splits(digits_dataset(), model, calibration_images=10, holdout_images=4)


def test_batches_are_the_evaluation_transform_in_order(model):
    raw = digits_dataset()
    data = open_splits(raw, model, calibration_images=16, holdout_images=16)
    images, labels = next(iter(data.test.batches(40)))
    pixels = np.asarray(raw["test"][0]["image"]) / 255
    expected = (pixels - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    np.testing.assert_allclose(images[0].permute(1, 2, 0).numpy(), expected, atol=1e-5)
    assert labels.tolist() == [i % 10 for i in range(40)]
    for workers in (0, 2):
        halves = [torch.cat([y for _, y in data.test.batches(16, (rank, 2), workers)]) for rank in (0, 1)]
        assert sorted(torch.cat(halves).tolist()) == sorted(labels.tolist())
    cached = data.holdout.cached_batches(5)
    assert [len(y) for _, y in cached] == [4, 4, 4, 4]
    assert cached.pixels[0].dtype == torch.uint8
    assert cached.pixels[0].data_ptr() == data.holdout.cached_batches(5).pixels[0].data_ptr()


def test_small_training_images_are_shifted_and_mirrored_as_one_by_one(model):
    raw = digits_dataset(100)
    data = open_splits(raw, model, calibration_images=16, holdout_images=16)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    possible = {}
    for number, row in enumerate(raw["train"]):
        padded = np.pad(np.asarray(row["image"]), ((4, 4), (4, 4), (0, 0)))
        for y, x, mirror in product(range(9), range(9), (False, True)):
            crop = padded[y : y + 32, x : x + 32]
            possible[(crop[:, ::-1] if mirror else crop).tobytes()] = (number % 10, y, x, mirror)
    shifts = set()
    for images, labels in data.train.epoch_batches(0, Portion(batch_size=40)):
        pixels = (images.permute(0, 2, 3, 1) * std + mean).mul(255).round().byte().numpy()
        for image, label in zip(pixels, labels.tolist(), strict=True):
            found, *shift = possible[image.tobytes()]
            assert found == label
            shifts.add(tuple(shift))
    assert len({y for y, _, _ in shifts}) == len({x for _, x, _ in shifts}) == 9
    assert {mirror for *_, mirror in shifts} == {False, True}


def test_bad_datasets_get_one_clear_error(model, tmp_path):
    good = digits_dataset(60, 20)
    strange = good["train"].cast_column("label", datasets.Value("int64")).map(lambda row: {"label": row["label"] - 1})
    words = (
        good["train"].cast_column("label", datasets.Value("string")).map(lambda row: {"label": "no " + row["label"]})
    )
    two = good["train"].map(
        lambda row: {"other": row["image"]},
        features=datasets.Features(good["train"].features | {"other": datasets.Image()}),
    )
    kinds = good["train"].add_column("breed", good["train"]["label"]).rename_column("label", "species")
    kinds = kinds.cast_column("breed", good["train"].features["label"])
    cases = [
        (datasets.DatasetDict(train=good["train"].remove_columns("label"), test=good["test"]), {}, "class labels"),
        (datasets.DatasetDict(test=good["test"]), {}, "no split `train`.* `open_test`"),
        (good["train"], {}, r"an opened dataset with its splits \(`datasets.DatasetDict`\); got a Dataset"),
        (datasets.DatasetDict(train=good["train"].select([]), test=good["test"]), {}, "`train` has no images"),
        (datasets.DatasetDict(train=strange, test=good["test"]), {}, "labels from -1 to 8; with 10 classes they run"),
        (
            datasets.DatasetDict(train=kinds, test=kinds),
            {},
            r"it has image \(Image\), species .*, breed .*name them with",
        ),
        (datasets.DatasetDict(train=two, test=good["test"]), {}, "name them with `image_column`"),
        (stream(datasets.DatasetDict(train=words, test=words)), {}, "give them with `label_names`"),
        (good, {"image_column": "picture"}, "`image_column=picture` is no column of .* it has image"),
        (good, {"augment": "rant"}, "`augment=rant` is not understood"),
        (good, {"calibration_images": 50, "holdout_images": 50}, "has 60 training images"),
        (good, {"holdout_images": -1}, "`holdout_images` is an integer, at least 0 or left out; got -1"),
        (str(tmp_path / "nothing"), {}, "can't be opened"),
    ]
    for dataset, options, message in cases:
        with pytest.raises(EagleEyeError, match=message):
            open_splits(dataset, model, **({"calibration_images": 20, "holdout_images": 20} | options))
    with pytest.raises(EagleEyeError, match="has 10 classes, but the model has 1000 outputs"):
        open_splits(good, timm.create_model("resnet18"))


@needs_shared
@pytest.mark.parametrize("streaming", [True, False])
def test_parquet_is_split_by_content(model, streaming):
    folder = SHARED / "data" / "cifar10"
    data = open_splits(folder, model, calibration_images=64, holdout_images=64, streaming=streaming)
    held = set(seen(data.calibration)) | set(seen(data.holdout))
    assert len(held) == 128
    assert data.train.count() == 50_000 - 128
    originals = {Image.open(io.BytesIO(image["bytes"])).tobytes() for image, _ in data.calibration.rows}
    assert {image for image in held if image in originals} == originals
    assert data.label_names[0] == "airplane"
    assert len(set(data.holdout.cached_batches(64)[0][1].tolist())) == 10
