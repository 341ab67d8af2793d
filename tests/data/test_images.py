"""Odd and broken files, and networks that break off."""

import io

import datasets
import numpy as np
import pytest
import timm
from PIL import Image

from eagleeye_hf import EagleEyeError, open_splits
from eagleeye_hf.data import rows as module
from eagleeye_hf.data.batches import Portion
from eagleeye_hf.data.images import decode_image
from eagleeye_hf.data.transforms import build_preprocessing
from tests.data.helpers import raw, seen
from tests.helpers import digits_dataset


def encode(image: Image.Image, fmt: str = "PNG", **options) -> dict:
    buffer = io.BytesIO()
    image.save(buffer, fmt, **options)
    return {"bytes": buffer.getvalue(), "path": None}


def test_every_kind_of_image_becomes_rgb():
    for mode in ("L", "LA", "RGBA", "P", "CMYK", "1"):
        image = decode_image(encode(Image.new(mode, (4, 4)), "JPEG" if mode == "CMYK" else "PNG"))
        assert image.mode == "RGB"
    deep = Image.fromarray(np.full((4, 4), 0x8000, dtype=np.uint16))
    assert abs(decode_image(encode(deep)).getpixel((0, 0))[0] - 128) <= 1
    assert abs(decode_image(encode(deep, "TIFF")).getpixel((0, 0))[0] - 128) <= 1
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    assert decode_image(encode(Image.new("RGB", (8, 4)), "JPEG", exif=exif)).size == (4, 8)
    transparent = Image.new("P", (4, 4))
    assert decode_image(encode(transparent, transparency=b"\x00\x01")).mode == "RGB"


def test_a_network_of_one_channel_sees_gray():
    model = timm.create_model(
        "resnet18", in_chans=1, num_classes=10, pretrained_cfg_overlay={"input_size": (1, 32, 32)}
    )
    model.pretrained_cfg = model.pretrained_cfg | {"mean": (0.5,), "std": (0.5,), "input_size": (1, 32, 32)}
    data = open_splits(digits_dataset(), model, calibration_images=20, holdout_images=20)
    assert data.holdout.cached_batches()[0][0].shape == (20, 1, 32, 32)
    assert next(data.train.epoch_batches(0, Portion(batch_size=16)))[0].shape[1:] == (1, 32, 32)


def broken_dataset(num: int = 100) -> datasets.DatasetDict:
    """Two images of the training split can't be decoded, one of the test split."""
    good = digits_dataset(num, 20)

    def damage(split: datasets.Dataset, bad: dict[int, bytes]) -> datasets.Dataset:
        split = split.cast_column("image", datasets.Image(decode=False))
        rows = [
            {"image": {"bytes": bad.get(i, row["image"]["bytes"]), "path": f"{i}.png"}, "label": row["label"]}
            for i, row in enumerate(split)
        ]
        return datasets.Dataset.from_list(rows, features=good["train"].features)

    whole = good["train"].cast_column("image", datasets.Image(decode=False))[5]["image"]["bytes"]
    train = damage(good["train"], {5: whole[:100], 17: b"no image"})
    return datasets.DatasetDict(train=train, test=damage(good["test"], {3: b""}))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("streaming", [False, True])
def test_broken_images_are_skipped_and_counted(workers, streaming):
    data = broken_dataset()
    if streaming:
        data = datasets.IterableDatasetDict({k: part.to_iterable_dataset(2) for k, part in data.items()})
    data = open_splits(data, timm.create_model("resnet20_cifar"), calibration_images=5, holdout_images=20, seed=0)
    held = {image["path"] for part in (data.calibration, data.holdout) for image, _ in part.rows}
    assert not held & {"5.png", "17.png"}
    with pytest.warns(UserWarning, match=r"2 of 75 images of dataset can't be decoded and were skipped; the first is"):
        assert len(seen(data.train, 0, workers=workers)) == 73
    with pytest.warns(UserWarning, match=r"1 of 20 images .* the first is 3\.png: UnidentifiedImageError"):
        assert len(seen(data.test, workers=workers)) == 19
    train = raw(data.train)
    with pytest.warns(UserWarning, match="2 of 75"):
        list(train.epoch_batches(0, Portion(batch_size=8)))
    assert train.skipped == 2


def test_small_images_skip_broken_ones_too():
    data = open_splits(broken_dataset(), timm.create_model("resnet20_cifar"), calibration_images=9, holdout_images=10)
    with pytest.warns(UserWarning, match="2 of 81"):
        assert sum(len(y) for _, y in data.train.epoch_batches(0, Portion(batch_size=8))) == 79


def test_not_one_image_is_an_error():
    data = broken_dataset(100)
    rows = data["train"].cast_column("image", datasets.Image(decode=False))
    rows = rows.map(lambda row, i: {"image": {"bytes": b"no image %d" % i, "path": None}}, with_indices=True)
    data["train"] = rows.cast_column("image", datasets.Image())
    splits = open_splits(data, timm.create_model("resnet20_cifar"), calibration_images=20, holdout_images=20)
    with pytest.raises(EagleEyeError, match="not one image can be decoded; the first is an image: Unid"):
        splits.calibration.cached_batches()


@pytest.mark.parametrize("streaming", [False, True])
def test_missing_images_and_labels_are_skipped_and_unknown_names_refused(streaming):
    good = digits_dataset(100, 20)
    rows, others = (
        [{"image": row["image"], "label": f"kind {row['label']}"} for row in good[split]] for split in ("train", "test")
    )
    rows[3]["image"], rows[8]["label"] = None, None
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    parts = {
        "train": datasets.Dataset.from_list(rows, features),
        "test": datasets.Dataset.from_list(others, features),
    }
    opened = datasets.DatasetDict(parts)
    if streaming:
        opened = datasets.IterableDatasetDict({k: part.to_iterable_dataset(2) for k, part in parts.items()})
    model = timm.create_model("resnet20_cifar")
    options = {"calibration_images": 20, "holdout_images": 20}
    names = [f"kind {i}" for i in range(10)]
    data = open_splits(opened, model, label_names=names, **options)
    with pytest.warns(UserWarning, match=r"[12] of \d\d images of dataset can't be decoded"):
        assert len(seen(data.train, 0)) == 58
    expected = (
        "has the label 'kind 9', which is none of the classes kind 0" if streaming else "only in the dataset: kind 9"
    )
    with pytest.raises(EagleEyeError, match=f"{expected}.* in the order of the model's outputs.* `label_names`"):
        open_splits(opened, model, label_names=[*names[:9], "cat"], **options)


class Unreliable:
    """A stream that breaks off at some rows, each a number of times."""

    def __init__(self, faults: dict[int, int]) -> None:
        self.faults, self.opened = faults, 0

    def __call__(self):
        self.opened += 1
        for row in range(10):
            if self.faults.get(row, 0) > 0:
                self.faults[row] -= 1
                raise ConnectionResetError("the other side hung up")
            yield row


def test_a_stream_goes_on_after_faults_of_the_network(monkeypatch):
    waits = []
    monkeypatch.setattr(module.time, "sleep", waits.append)
    stream = Unreliable({0: 1, 4: 3, 9: 1})
    assert list(module.retry_rows(stream, "data")) == list(range(10))
    assert waits == [1, 1, 2, 4, 1]
    with pytest.raises(EagleEyeError, match=r"`dataset=data`: the stream broke off after 4 rows, and 5 further tries"):
        list(module.retry_rows(Unreliable({4: 99}), "data"))
    with pytest.raises(EagleEyeError, match=r"`dataset=data`: .* beyond 0 rows, .* is damaged \(ZeroDivisionError"):
        list(module.retry_rows(lambda: (1 / 0 for _ in range(3)), "data"))


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n%%Page: 1 1\nshowpage\n%%EOF\n"


def test_a_file_that_another_program_would_read_is_skipped(tmp_path, monkeypatch):
    """PIL hands EPS files to Ghostscript, whatever they are called."""
    started = []
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)  # as if nobody had looked for it
    monkeypatch.setattr("subprocess.Popen", lambda *args, **options: started.append(args))
    good = digits_dataset(40, 20)
    for split, rows in good.items():
        for number, row in enumerate(rows):
            place = tmp_path / split / f"kind {row['label']}" / f"{number}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            row["image"].save(place)
        (tmp_path / split / "kind 3" / "99.jpg").write_bytes(EPS + split.encode())  # no copies
    model = timm.create_model("resnet20_cifar")
    data = open_splits(tmp_path, model, calibration_images=0, holdout_images=0, hflip=False)
    for part, num in ((data.test, 20), (data.train, 40)):
        with pytest.warns(UserWarning, match=rf"1 of {num + 1} images .*99\.jpg: UnidentifiedImageError"):
            assert sum(len(labels) for _, labels in part.batches()) == num
        assert part.skipped == 1
    assert not started
    with pytest.raises(Exception):  # noqa: B017, PT011  whatever a failed program makes PIL raise: it was asked for
        Image.open(io.BytesIO(EPS)).load()
    assert started


@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "ICO", "TGA"])
def test_usual_formats(fmt):
    assert decode_image(encode(Image.new("RGB", (16, 16), (200, 0, 0)), fmt)).getpixel((8, 8))[0] > 180


@pytest.mark.parametrize("size", [32, 96])
def test_colours_change_only_where_that_is_asked_for(size):
    """The paper's augmentation crops and mirrors; timm's default would change colours, too."""
    model = timm.create_model("resnet20_cifar")
    model.pretrained_cfg = {**model.pretrained_cfg, "input_size": (3, size, size)}
    image = Image.new("RGB", (128, 100), (100, 150, 200))
    seen = {}
    for jitter in (0.0, 0.4):
        transform = build_preprocessing(model, color_jitter=jitter)[0].transform
        seen[jitter] = {tuple(np.asarray(transform(image))[:, 8, 8].tolist()) for _ in range(8)}
    assert seen[0.0] == {(100, 150, 200)}
    assert len(seen[0.4]) > 4
