"""Datasets as users have them: image folders, webdataset tars, parquet, a server."""

import http.server
import io
import re
import tarfile
import threading
from pathlib import Path

import datasets
import numpy as np
import pytest
import timm

from eagleeye_hf import EagleEyeError, open_splits
from tests.data.helpers import seen
from tests.helpers import digits_dataset

MODEL = timm.create_model("resnet20_cifar")
COUNTS = {"calibration_images": 20, "holdout_images": 20}


@pytest.fixture(scope="module")
def originals() -> datasets.DatasetDict:
    return digits_dataset(120, 20)


def pixels(split: datasets.Dataset) -> set[bytes]:
    return {np.asarray(image).tobytes() for image in split["image"]}


def check(data, originals) -> None:
    """All images of the training split, each once and in one part, and those of the test split."""
    parts = [seen(data.calibration), seen(data.holdout), seen(data.train, epoch=0)]
    assert [len(part) for part in parts] == [20, 20, 80]
    assert set().union(*parts) == pixels(originals["train"])
    assert set(seen(data.test)) == pixels(originals["test"])


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory, originals) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for split, rows in originals.items():
        for number, row in enumerate(rows):
            place = folder / split / f"kind {row['label']}" / f"{number}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            row["image"].save(place)
    return folder


@pytest.mark.parametrize("streaming", [None, True])
def test_a_folder_of_images(image_folder, originals, streaming):
    data = open_splits(image_folder, MODEL, streaming=streaming, **COUNTS)
    check(data, originals)
    assert data.label_names == tuple(f"kind {i}" for i in range(10))
    assert np.bincount(data.holdout.cached_batches()[0][1]).tolist() == [2] * 10 or streaming


def write_tars(folder: Path, originals: datasets.DatasetDict, label) -> Path:
    for split, rows in originals.items():
        for shard in range(3):
            with tarfile.open(folder / f"{split}-{shard:03}.tar", "w") as tar:
                for number in range(shard, len(rows), 3):
                    buffer = io.BytesIO()
                    rows[number]["image"].save(buffer, "PNG")
                    name, content = label(rows[number]["label"])
                    for ending, data in (("png", buffer.getvalue()), (name, content)):
                        info = tarfile.TarInfo(f"{number:05}.{ending}")
                        info.size = len(data)
                        tar.addfile(info, io.BytesIO(data))
    return folder


def test_webdataset_tars(tmp_path, originals):
    data = open_splits(write_tars(tmp_path, originals, lambda label: ("cls", str(label).encode())), MODEL, **COUNTS)
    check(data, originals)
    assert not data.train.exact_steps
    assert data.label_names == tuple(map(str, range(10)))
    assert len(seen(data.train, 0, workers=2)) == 80


def test_a_damaged_tar_is_one_clear_error(tmp_path, originals):
    write_tars(tmp_path, originals, lambda label: ("cls", str(label).encode()))
    shard = tmp_path / "train-001.tar"
    shard.write_bytes(shard.read_bytes()[:20_000])
    data = open_splits(tmp_path, MODEL, calibration_images=0, holdout_images=0)
    for workers in (0, 2):
        with pytest.raises(EagleEyeError, match=r"beyond \d+ rows, for a file of it is damaged \(ReadError"):
            seen(data.train, 0, workers=workers)


def test_the_model_names_classes_that_a_dataset_only_numbers(tmp_path, originals):
    write_tars(tmp_path, originals, lambda label: ("cls", str(label).encode()))
    model = timm.create_model("resnet20_cifar")
    model.pretrained_cfg["label_names"] = names = [f"kind {i}" for i in range(10)]
    assert open_splits(tmp_path, model, **COUNTS).label_names == tuple(names)


def test_webdataset_tars_with_class_names(tmp_path, originals):
    folder = write_tars(tmp_path, originals, lambda label: ("class.txt", f"kind {label}".encode()))
    names = [f"kind {i}" for i in reversed(range(10))]
    options = {"image_column": "png", "label_column": "class.txt", **COUNTS}
    data = open_splits(folder, MODEL, label_names=names, **options)
    check(data, originals)
    batch = data.test.cached_batches()[0][1]
    assert sorted(batch.tolist()) == sorted([9 - i % 10 for i in range(20)])
    with pytest.raises(EagleEyeError, match="give them with `label_names`"):
        open_splits(folder, MODEL, **options)


def test_parquet_without_any_description(tmp_path, originals):
    """Structs of bytes and path, and class names as words: found, and sorted."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for split, rows in originals.items():
        encoded = rows.cast_column("image", datasets.Image(decode=False))
        table = {"picture": [r["image"] for r in encoded], "class": [f"kind {r['label']}" for r in encoded]}
        pq.write_table(pa.table(table), tmp_path / f"{split}.parquet")
    data = open_splits(tmp_path, MODEL, **COUNTS)
    check(data, originals)
    assert data.label_names == tuple(f"kind {i}" for i in range(10))


class _Failing(http.server.BaseHTTPRequestHandler):
    """Serves parts of files; now and then it breaks off."""

    folder: Path
    requests = 0
    broken = 0

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        data = (self.folder / self.path[1:]).read_bytes()
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        first, last = (int(wanted[1]), int(wanted[2] or len(data) - 1)) if wanted else (0, len(data) - 1)
        _Failing.requests += wanted is not None
        if wanted and _Failing.requests % 5 == 0:
            _Failing.broken += 1
            self.send_error(503)
            return
        self.send_response(206 if wanted else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        self.send_header("Content-Length", str(min(last + 1, len(data)) - first))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data[first : last + 1])

    def log_message(self, *args) -> None:
        pass


def test_a_server_that_fails_now_and_then(tmp_path, originals, monkeypatch):
    pytest.importorskip("aiohttp")  # what fsspec reads http with
    for split, rows in originals.items():
        for shard in range(4):
            rows.shard(4, shard).to_parquet(tmp_path / f"{split}-{shard}.parquet")
    monkeypatch.setattr(_Failing, "folder", tmp_path, raising=False)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Failing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("eagleeye_hf.data.rows.RETRY_SECONDS", 0.01)
    monkeypatch.setattr(datasets.config, "STREAMING_READ_RETRY_INTERVAL", 0.01)
    monkeypatch.setattr(datasets.config, "STREAMING_READ_SERVER_UNAVAILABLE_RETRY_INTERVAL", 0.01)
    try:
        address = f"http://127.0.0.1:{server.server_address[1]}"
        files = {split: [f"{address}/{split}-{shard}.parquet" for shard in range(4)] for split in originals}
        opened = datasets.load_dataset("parquet", data_files=files, streaming=True)
        check(open_splits(opened, MODEL, **COUNTS), originals)
        assert _Failing.broken
        server.shutdown()
        server.server_close()
        with pytest.raises(EagleEyeError, match=r"the stream broke off after \d+ rows, and 5 further tries failed"):
            list(open_splits(opened, MODEL, **COUNTS).test.batches())
    finally:
        server.server_close()


def test_the_cache_that_can_not_be_written_is_one_clear_error(tmp_path, image_folder, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "file" / "cache")
    with pytest.raises(EagleEyeError, match=r"can't be opened \(\w+: .*file"):
        open_splits(image_folder, MODEL, **COUNTS)
