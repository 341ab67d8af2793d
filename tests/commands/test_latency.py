"""Budgets of milliseconds, fronts, comparisons and 8-bit integers, as users ask for them."""

import io
import json
import re
import shutil
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from eagleeye_hf import from_pretrained
from eagleeye_hf.cli import main
from eagleeye_hf.runs.measuring import judge_latency
from eagleeye_hf.runtimes import profiling
from eagleeye_hf.runtimes.latency import Latency
from eagleeye_hf.search.reading import read_journal
from eagleeye_hf.strategies.budget import Limit
from tests.helpers import digits_dataset, make_model, run_command
from tests.runtimes.predictors import PLACE

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
COUNTS = ["--calibration-images", "32", "--holdout-images", "64", "--num-workers", "0"]
SEARCH = ["--latency", "0.85", "0.7", "--candidates", "6", "--tolerance", "0.03"]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("inputs")
    save_file(make_model("resnet20_cifar").state_dict(), folder / "weights.safetensors")
    for split, rows in digits_dataset().items():
        (folder / "data").mkdir(exist_ok=True)
        rows.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return ["resnet20_cifar", "--weights", str(folder / "weights.safetensors"), "--dataset", str(folder / "data")]


@pytest.fixture(scope="module")
def searched(inputs, tmp_path_factory) -> tuple[Path, str, str]:
    """A search under two budgets of milliseconds, in every runtime at hand; fewer sub-nets are profiled."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(profiling, "PROFILED", 12)
        patch.setattr(profiling, "MEASURED", 6)
        folder = tmp_path_factory.mktemp("search")
        command = ["search", *inputs, *COUNTS, *SEARCH, "--threads", "1"]
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            assert main([*command, "--output", str(folder)]) == 0, err.getvalue()
    return folder, out.getvalue(), err.getvalue()


def test_a_front_has_the_full_network_and_the_uniform_strategies_in_every_runtime(searched):
    folder, out, err = searched
    front = json.loads((folder / "front.json").read_text())
    assert front["rows"][0]["kind"] == "full"
    assert {row["kind"] for row in front["rows"]} >= {"full", "chosen"}
    places = list(front["rows"][0]["milliseconds"])
    assert [place.split(" on ")[0] for place in places] == ["ONNX Runtime", "PyTorch", "OpenVINO"]
    assert all(place.endswith(", 1 thread") for place in places)
    assert all(set(row["milliseconds"]) == set(places) for row in front["rows"])
    assert (folder / "front.png").read_bytes().startswith(b"\x89PNG")
    assert re.search(r"^full network +\d+\.\d\d% .*100%", out, re.MULTILINE)
    assert "milliseconds are measured: ONNX Runtime on CPU" in out
    assert "likes multiples of" in err or "layers as fitted" in err or "profiles in" in err


def test_milliseconds_are_predicted_for_all_and_measured_for_the_leaders(searched):
    record = read_journal(searched[0])
    assert record.prepared.latency.place.runtime == "onnxruntime"
    assert record.prepared.alignment >= 1
    assert all(candidate.predicted_ms for candidate in record.candidates)
    for number, part in enumerate((0.85, 0.7)):
        best = record.leaders(number)[0]
        assert best.latency is not None
        assert best.latency.place == record.prepared.latency.place
        kept = best.latency.milliseconds <= part * best.latency.full_ms * 1.02
        assert kept == (best.beyond == 0)
        for candidate in record.candidates:
            if candidate.budget == number:
                assert candidate.predicted_ms <= (part + 0.031) * record.prepared.latency.full_ms


def test_a_search_goes_on_in_the_same_runtime_only(searched, inputs, capsys):
    command = ["search", *inputs, *COUNTS, *SEARCH]
    code, _, err = run_command(capsys, *command, "--threads", "1", "--runtime", "torch", "--output", str(searched[0]))
    assert code == 2
    assert "the search's milliseconds are of ONNX Runtime on CPU" in err
    assert "here they would be of PyTorch on CPU" in err


@pytest.fixture(scope="module")
def thin(searched, inputs, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("thin") / "half"
    strategy = f"{searched[0] / 'strategy.json'}#latency=0.7"
    assert main(["prune", *inputs, *COUNTS, "--strategy", strategy, "--output", str(folder)]) == 0
    return folder


def test_checkpoints_are_compared_and_the_full_network_goes_first(thin, inputs, tmp_path, capsys):
    code, out, _ = run_command(capsys, "compare", str(thin), str(thin), *inputs[3:], "--num-workers", "0")
    assert code == 0
    rows = [line for line in out.splitlines() if "ms" in line]
    assert rows[0].startswith("full network (resnet20_cifar)")
    assert len([row for row in rows if row.startswith(str(thin))]) == 2
    assert "MB" in rows[1]
    assert re.search(r"top-1 on \d+ images of data, split test", out)
    assert "as the first checkpoint tells it" not in out, "this one tells nothing of its images"
    config = json.loads((thin / "config.json").read_text())
    told = tmp_path / "told"
    shutil.copytree(thin, told)
    images = int(re.search(r"top-1 on (\d+) images", out)[1])
    for split, shown in (("test", True), ("validation", False)):
        tested = {"dataset": "data", "split": split, "images": images}
        facts = {"metrics": {"full": {"top1": 0.1234, "top5": 1, "loss": 1, "num_images": images}}, "tested_on": tested}
        (told / "config.json").write_text(json.dumps(config | {"eagleeye": config["eagleeye"] | facts}))
        code, out, _ = run_command(capsys, "compare", str(told), *inputs[3:], "--num-workers", "0")
        assert code == 0
        assert ("12.34%" in out) == ("as the first checkpoint tells it" in out) == shown
    picture = tmp_path / "front.png"
    code, out, _ = run_command(
        capsys,
        "compare",
        inputs[0],
        str(thin),
        *inputs[1:3],
        "--costs-only",
        "--runtime",
        "torch",
        "--output",
        str(picture),
        "--json",
    )
    assert code == 0
    rows = json.loads(out)["rows"]
    assert [row["kind"] for row in rows] == ["full", "given"]
    assert rows[0]["macs"] > rows[1]["macs"]
    assert rows[0]["file_bytes"] > rows[1]["file_bytes"]
    assert picture.read_bytes().startswith(b"\x89PNG")
    code, _, err = run_command(capsys, "compare", str(thin), "--costs-only", "--output", str(picture))
    assert code == 2
    assert "exists; choose another file" in err


def test_int8_is_written_measured_beside_float32_and_told_in_the_card(thin, inputs, tmp_path, capsys):
    card = thin / "README.md"
    before = card.read_text() if card.exists() else None
    card.write_text("# A card\n\n## How to load it\n\nthus\n")
    path = tmp_path / "int8.onnx"
    command = ["export", str(thin), "--int8", *inputs[3:], *COUNTS[:2], "--output", str(path), "--threads", "1"]
    code, out, _ = run_command(capsys, *command)
    assert code == 0
    assert re.search(r"^ +float32 +int8$", out, re.MULTILINE)
    assert re.search(r"^test top-1 +\d+\.\d\d% +\d+\.\d\d%$", out, re.MULTILINE)
    text = card.read_text()
    assert text.index("## In 8-bit integers") < text.index("## How to load it")
    assert "ONNX Runtime on CPU" in text
    again = ["--overwrite", "--runtime", "openvino", "--batch-size", "5", "--latency-batch", "2"]
    assert run_command(capsys, *command, *again)[0] == 0
    text = card.read_text()
    assert text.count("## In 8-bit integers") == 1
    assert "| latency, 2 images, OpenVINO on CPU" in text
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    model, images = from_pretrained(thin), torch.rand(5, 3, 32, 32)
    assert session.get_inputs()[0].shape == [5, 3, 32, 32]
    with torch.inference_mode():
        expected = model(images).numpy()
    found = session.run(None, {"images": images.numpy()})[0]
    assert np.abs(found - expected).max() < 0.2 * np.abs(expected).max()
    code, _, err = run_command(capsys, *command)
    assert code == 2
    assert "exists; choose another, or allow it to be replaced" in err
    card.unlink() if before is None else card.write_text(before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["export", "resnet20_cifar", "--int8", "--output", "x.pt2"], "`int8` is written as ONNX"),
        (["search", "resnet20_cifar", "--int8", "--runtime", "torch"], "`int8` is for runtime onnxruntime or openvino"),
        (["search", "resnet20_cifar", "--runtime", "tflite"], "`--runtime` is one of auto, torch, compile"),
        (["search", "resnet20_cifar", "--threads", "0"], "`threads` is an integer, at least 1"),
        (
            ["search", "resnet20_cifar", "--latency", "4.2 parsecs"],
            "`latency` is a fraction of the full model in (0, 1]",
        ),
        (["search", "resnet20_cifar", "--divisor", "x"], "`--divisor` is"),
        (
            ["compare", "nowhere", "--costs-only"],
            "`model=nowhere` is no model of timm, and there is no folder of that name",
        ),
        (["compare", "outputs/nowhere", "--costs-only"], "no such folder; for one on the Hub write hf-hub:outputs/"),
        (["compare", "resnet20_cifar", "--output", "x.jpg"], "has to end in .png"),
    ],
)
def test_wrong_arguments_are_one_line(arguments, message, capsys):
    code, _, err = run_command(capsys, *arguments)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("milliseconds", "limit", "told"),
    [
        (5.0, Limit(0.5, True), []),
        (5.09, Limit(0.5, True), []),
        (5.2, Limit(0.5, True), ["4.0% more than the budget's 5 ms"]),
        (0.9, Limit(0.8, False), ["12.5% more than the budget's 0.8 ms"]),
        (11.0, None, ["slower than the full network in PyTorch on CPU"]),
    ],
)
def test_a_result_beyond_its_budget_or_slower_than_the_full_network_is_said_to_be(milliseconds, limit, told):
    notes = judge_latency(Latency(milliseconds=milliseconds, full_ms=10.0, place=PLACE), limit)
    assert len(notes) == len(told)
    assert all(text in note for text, note in zip(told, notes, strict=True))
