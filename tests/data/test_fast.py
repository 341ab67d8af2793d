"""The fast way from a file to pixels, beside timm's own transforms."""

import io

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from eagleeye_hf.data.batches import Decoder, seed_everything
from eagleeye_hf.data.images import decode_image
from eagleeye_hf.data.transforms import build_preprocessing
from eagleeye_hf.errors import EagleEyeError

SIZE = 96


def preprocessing(channels: int = 3):
    config = {"input_size": (channels, SIZE, SIZE), "crop_pct": 0.9, "interpolation": "bicubic"}
    return build_preprocessing(timm.create_model("resnet10t", in_chans=channels, pretrained_cfg_overlay=config))


def photograph(width: int, height: int) -> Image.Image:
    """Smooth, with some texture."""
    random = np.random.default_rng(0)
    coarse = Image.fromarray(random.integers(0, 256, (15, 20, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.BICUBIC)).astype(int)
    return Image.fromarray((smooth + random.integers(-8, 8, smooth.shape)).clip(0, 255).astype(np.uint8))


def encode(image: Image.Image, kind: str = "JPEG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def rotated() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
)

FILES = {
    "photograph": encode(photograph(320, 240), quality=92),
    "upright": encode(photograph(240, 320), quality=92),
    "on its side": encode(photograph(320, 240), quality=92, exif=rotated()),
    "on its side by XMP": encode(photograph(320, 240), quality=92, xmp=XMP),
    "png": encode(photograph(200, 240), "PNG"),
    "gray": encode(photograph(240, 200).convert("L")),
    "cmyk": encode(photograph(240, 200).convert("CMYK")),
    "palette": encode(photograph(240, 200).convert("P"), "GIF"),
    "large": encode(photograph(1600, 1200), quality=92),
}


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("channels", [3, 1])
def test_it_gives_timms_pixels(kind, channels):
    """The same crop and mirror, drawn from the same seed, within what resampling allows."""
    for number, how in enumerate(preprocessing(channels)):
        assert how.fast is not None
        for seed in range(4):
            seed_everything(seed)
            expected = torch.as_tensor(how.transform(decode_image(FILES[kind], how.mode))).int()
            seed_everything(seed)
            found = decode_image(FILES[kind], how.mode, how.fast).int()
            assert found.shape == expected.shape == (channels, SIZE, SIZE)
            error = (found - expected).abs().float()
            assert error.mean() < (1.5 if kind == "large" else 0.2), (number, seed)


def test_detail_that_nobody_sees_is_not_decoded(monkeypatch):
    drafts = []
    draft = Image.Image.draft
    monkeypatch.setattr(
        "PIL.JpegImagePlugin.JpegImageFile.draft", lambda self, *given: drafts.append(given[1]), raising=True
    )
    assert draft is Image.Image.draft
    evaluation = preprocessing()[1]
    decode_image(FILES["photograph"], "RGB", evaluation.fast)
    assert drafts == []
    decode_image(FILES["large"], "RGB", evaluation.fast)
    assert drafts == [(400, 300)]


def test_what_else_timm_does_is_left_to_timm():
    assert build_preprocessing(timm.create_model("resnet10t"), augment="rand-m9-mstd0.5")[0].fast is None
    assert build_preprocessing(timm.create_model("resnet10t"), color_jitter=0.4)[0].fast is None
    lanczos = timm.create_model("resnet10t", pretrained_cfg_overlay={"interpolation": "lanczos"})
    assert build_preprocessing(lanczos)[1].fast is None


def test_a_network_of_other_channels_is_refused():
    with pytest.raises(EagleEyeError, match="takes images of 4 channels; those of a dataset are gray or in colour"):
        build_preprocessing(timm.create_model("resnet10t", in_chans=4))


def test_a_broken_file_is_told():
    evaluation = preprocessing()[1]
    decoder = Decoder(transform=evaluation.transform, fast=evaluation.fast, mode="RGB")
    whole = FILES["photograph"]
    rows = [
        ({"bytes": data, "path": name}, 1)
        for name, data in (("a", whole), ("b", whole[: len(whole) // 2]), ("c", b"x"))
    ]
    decoded = decoder(rows, None)
    assert len(decoded.labels) == 1
    assert [problem[:2] for problem in decoded.problems] == ["b:", "c:"]
