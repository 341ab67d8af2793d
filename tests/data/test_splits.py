import io

import datasets
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

from eagleeye_hf import EagleEyeError, open_splits
from eagleeye_hf.data.transforms import decode_image
from tests.helpers import SHARED, digits_dataset, needs_shared


@pytest.fixture(scope="module")
def model():
    return timm.create_model("resnet20_cifar")


def keys(images) -> list[bytes]:
    return [image["bytes"] for image, _ in images._rows(0)]


def test_splits_are_disjoint_and_whole(model):
    data = open_splits(digits_dataset(), model, calibration_images=30, holdout_images=40)
    parts = [set(keys(part)) for part in (data.calibration, data.holdout, data.train)]
    assert [len(part) for part in parts] == [30, 40, 130]
    assert len(set.union(*parts)) == 200
    assert data.train.count() == 130
    assert data.label_names == tuple(f"class {i}" for i in range(10))


def test_the_seed_decides(model):
    first, again, other = (
        keys(open_splits(digits_dataset(), model, calibration_images=20, holdout_images=20, seed=seed).holdout)
        for seed in (0, 0, 1)
    )
    assert first == again != other


def test_duplicates_of_held_out_images_are_not_trained_on(model):
    data = digits_dataset()
    data["train"] = datasets.concatenate_datasets([data["train"], data["train"]])
    splits = open_splits(data, model, calibration_images=30, holdout_images=30)
    held = set(keys(splits.calibration)) | set(keys(splits.holdout))
    assert len(held) == 60
    assert not held & set(keys(splits.train))


def test_batches_are_the_evaluation_transform_in_order(model):
    data = open_splits(digits_dataset(), model, calibration_images=16, holdout_images=16)
    images, labels = next(iter(data.test.batches(40)))
    pixels = np.asarray(Image.open(io.BytesIO(keys(data.test)[0]))) / 255
    expected = (pixels - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    np.testing.assert_allclose(images[0].permute(1, 2, 0).numpy(), expected, atol=1e-5)
    assert labels.tolist() == [i % 10 for i in range(40)]
    halves = [torch.cat([y for _, y in data.test.batches(16, part=(rank, 2))]) for rank in (0, 1)]
    assert sorted(torch.cat(halves).tolist()) == sorted(labels.tolist())
    cached = data.holdout.cached_batches(5)
    assert [len(y) for _, y in cached] == [5, 5, 5, 1]
    assert cached[0][0].data_ptr() == data.holdout.cached_batches(5)[0][0].data_ptr()


def test_every_kind_of_image_becomes_rgb():
    def encode(image: Image.Image, fmt: str = "PNG", **options) -> dict:
        buffer = io.BytesIO()
        image.save(buffer, fmt, **options)
        return {"bytes": buffer.getvalue(), "path": None}

    for mode in ("L", "RGBA", "P", "CMYK", "1"):
        image = decode_image(encode(Image.new(mode, (4, 4)), "JPEG" if mode == "CMYK" else "PNG"))
        assert image.mode == "RGB"
    deep = Image.fromarray(np.full((4, 4), 0x8000, dtype=np.uint16))
    assert abs(decode_image(encode(deep)).getpixel((0, 0))[0] - 128) <= 1
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    assert decode_image(encode(Image.new("RGB", (8, 4)), "JPEG", exif=exif)).size == (4, 8)


def test_bad_datasets_get_one_clear_error(model, tmp_path):
    good = digits_dataset(60, 20)
    cases = [
        (datasets.DatasetDict(train=good["train"].remove_columns("label"), test=good["test"]), {}, "class labels"),
        (datasets.DatasetDict(train=good["train"]), {}, "needs a split named"),
        (datasets.DatasetDict(test=good["test"]), {}, "no split `train`"),
        (good, {"calibration_images": 50, "holdout_images": 50}, "has 60 training images"),
        (good, {"holdout_images": 0}, "`holdout_images` is a positive number"),
        (str(tmp_path / "nothing"), {}, "can't be opened"),
    ]
    for dataset, options, message in cases:
        with pytest.raises(EagleEyeError, match=message):
            open_splits(dataset, model, **options)
    with pytest.raises(EagleEyeError, match="has 10 classes, but the model has 1000 outputs"):
        open_splits(good, timm.create_model("resnet18"))
    assert isinstance(model, nn.Module)


@needs_shared
def test_streamed_parquet_is_split_by_content(model):
    data = open_splits(SHARED / "data" / "cifar10", model, calibration_images=64, holdout_images=64)
    held = set(keys(data.calibration)) | set(keys(data.holdout))
    assert len(held) == 128
    assert not held & set(keys(data.train))
    assert data.label_names[0] == "airplane"
    assert len(set(data.holdout.cached_batches(64)[0][1].tolist())) == 10
