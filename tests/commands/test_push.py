"""`eagleeye push`, `export`, `evaluate` and `inspect` on a checkpoint."""

import json

import pytest
import timm
import torch

from eagleeye_hf import EagleEyeError, evaluate_model, from_pretrained
from eagleeye_hf.cli import main
from eagleeye_hf.runs.models import load_model
from tests.helpers import digits_dataset
from tests.hub_server import TOKEN
from tests.publishing.make import write_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")  # huggingface_hub's own


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("commands") / "run"
    write_checkpoint(folder)
    return folder


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    path = tmp_path_factory.mktemp("digits")
    for split, rows in digits_dataset(40, 30).items():
        rows.to_parquet(path / f"{split}-00000-of-00001.parquet")
    return path


def run(capsys, *arguments) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_evaluate_agrees_with_timms_own_transform(capsys, folder, dataset):
    code, out, _ = run(capsys, "evaluate", folder, "--dataset", dataset, "--num-workers", "0", "--json")
    assert code == 0
    model = from_pretrained(folder)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    rows = digits_dataset(40, 30)["test"]
    images, labels = torch.stack([transform(row["image"]) for row in rows]), torch.tensor(rows["label"])
    with torch.inference_mode():
        logits = model(images)
    found = json.loads(out)
    assert found["num_images"] == 30
    assert found["top1"] == pytest.approx(float((logits.argmax(1) == labels).float().mean()))
    assert found["loss"] == pytest.approx(float(torch.nn.functional.cross_entropy(logits, labels)), rel=1e-4)
    assert evaluate_model(model, [(images, labels)]).top5 == pytest.approx(found["top5"])
    _, out, _ = run(capsys, "evaluate", folder, "--dataset", dataset, "--num-workers", "0")
    assert f"top-1 {found['top1']:.2%}" in out


def test_export(capsys, folder, tmp_path):
    code, out, _ = run(capsys, "export", folder, "--output", tmp_path / "thin.pt2", "--image-size", "40", "--json")
    assert code == 0
    assert json.loads(out)["input_size"] == [3, 40, 40]
    images = torch.randn(2, 3, 40, 40)
    with torch.inference_mode():
        expected = from_pretrained(folder)(images)
        torch.testing.assert_close(torch.export.load(tmp_path / "thin.pt2").module()(images), expected)


def test_export_replaces_no_file_unasked(capsys, folder, tmp_path):
    path = tmp_path / "thin.pt2"
    path.write_text("mine")
    code, _, err = run(capsys, "export", folder, "--output", path)
    assert code == 2
    assert "thin.pt2` exists; choose another" in err
    assert path.read_text() == "mine"
    code, _, _ = run(capsys, "export", folder, "--output", path, "--overwrite")
    assert code == 0
    assert path.stat().st_size > 10_000


@pytest.mark.slow
def test_export_to_onnx(capsys, folder, tmp_path):
    pytest.importorskip("onnxruntime")
    code, out, _ = run(capsys, "export", folder, "--output", tmp_path / "thin.onnx")
    assert code == 0
    assert "input 3 x 32 x 32, outputs checked" in out


def test_push(capsys, hub, folder, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    code, out, _ = run(capsys, "push", folder, "user/thin", "--private", "--revision", "v1", "--remote-code")
    assert code == 0
    repo = hub.repos["user/thin"]
    assert out == f"published: {hub.url}/user/thin/commit/{repo.refs['v1']}\n"
    assert repo.private
    assert "modeling_eagleeye_pruned.py" in repo.commits[repo.refs["v1"]]
    _, out, _ = run(capsys, "push", folder, "user/thin", "--create-pr", "--commit-message", "thinner", "--json")
    assert json.loads(out)["url"].endswith("/discussions/1")
    assert repo.messages[-1] == "thinner"


def test_push_with_a_licence(capsys, hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    write_checkpoint(tmp_path / "run", license="")
    code, _, err = run(capsys, "push", tmp_path / "run", "user/thin")
    assert code == 2
    assert "does not tell the licence" in err
    code, _, _ = run(capsys, "push", tmp_path / "run", "user/thin", "--license", "mit")
    assert code == 0
    repo = hub.repos["user/thin"]
    assert "\nlicense: mit\n" in repo.commits[repo.refs["main"]]["README.md"].decode()


def test_models_are_given_by_name_folder_or_repo(hub, folder, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    from eagleeye_hf import push_to_hub

    push_to_hub(folder, "user/thin")
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        expected = from_pretrained(folder)(images)
        torch.testing.assert_close(load_model(str(folder)).eval()(images), expected)
        torch.testing.assert_close(load_model("hf-hub:user/thin").eval()(images), expected)
    with pytest.raises(EagleEyeError, match="is a checkpoint, which has its own"):
        load_model(str(folder), "weights.safetensors")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["push", "/nowhere", "user/thin"], r"/nowhere is no folder; give the folder that a run has written"),
        (["push", "FOLDER", "user/thin"], "Log in with `hf auth login`"),
        (["export", "FOLDER", "--output", "thin.txt"], "has to end in .onnx or .pt2"),
        (["export", "FOLDER", "--output", "/nowhere/thin.onnx"], "there is no folder /nowhere"),
        (["evaluate", "FOLDER", "--dataset", "/nowhere/images"], "`dataset=/nowhere/images` can't be opened"),
        (["evaluate", "hf-hub:user/none", "--dataset", "/nowhere"], "its trained weights can't be loaded"),
    ],
)
def test_bad_input_is_one_clear_line(capsys, hub, folder, arguments, message):
    code, _, err = run(capsys, *[folder if argument == "FOLDER" else argument for argument in arguments])
    assert code == 2
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert message in lines[0]
