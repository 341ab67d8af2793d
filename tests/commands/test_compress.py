"""`eagleeye compress`: the whole job, ended at any moment and started again."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from eagleeye_hf import RunConfig, from_pretrained
from eagleeye_hf.cli import main
from eagleeye_hf.configs import flat_dict
from eagleeye_hf.runs.arguments import parse_config
from eagleeye_hf.runs.folder import RunFolder
from tests.helpers import digits_dataset, make_model, run_command
from tests.hub_server import TOKEN

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")  # huggingface_hub's own
FLAGS = ["--calibration-images", "20", "--holdout-images", "20", "--candidates", "2", "--epochs", "1"]
FLAGS += ["--batch-size", "40", "--num-workers", "0", "--license", "mit", "--runtime", "torch"]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("inputs")
    save_file(make_model("resnet20_cifar").state_dict(), folder / "weights.safetensors")
    for split, rows in digits_dataset().items():
        (folder / "data").mkdir(exist_ok=True)
        rows.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return ["resnet20_cifar", "--weights", str(folder / "weights.safetensors"), "--dataset", str(folder / "data")]


@pytest.fixture(scope="module")
def finished(inputs, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert main(["compress", *inputs, *FLAGS, "--output", str(folder)]) == 0
    return folder


def test_the_whole_job_in_one_command(finished, inputs):
    model = from_pretrained(finished)
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 10)
    told = json.loads((finished / "config.json").read_text())["eagleeye"]
    assert list(told["metrics"]) == ["full", "fine-tuned"]
    assert list(told["holdout_metrics"]) == ["vanilla", "adaptive", "compensated"]
    assert not (finished / "training").exists()
    settings = yaml.safe_load((finished / "run.yaml").read_text())
    asked = parse_config(RunConfig, [*inputs, *FLAGS, "--output", str(finished)], "", "")
    settled = {"adapt_epochs": 0, "adapt_lr": 0.0125, "lr": 0.0125}  # 0.02 for 64 images a step
    assert settings == flat_dict(asked) | settled


def test_the_settings_that_a_run_writes_start_it_again(finished, tmp_path):
    other = tmp_path / "again"
    assert main(["compress", "--config", str(finished / "run.yaml"), "--output", str(other)]) == 0
    before, after = (load_file(folder / "model.safetensors") for folder in (finished, other))
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_a_run_that_was_killed_after_its_checkpoint_finishes(finished, inputs, tmp_path, capsys, hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    run = RunFolder(folder, "compress")
    run.note(finished=False)
    (folder / "training").mkdir()
    before = (folder / "model.safetensors").read_bytes()
    command = ["compress", *inputs, *FLAGS, "--output", str(folder), "--push-to", "user/thin"]
    code, out, err = run_command(capsys, *command)
    assert code == 0, err
    assert "top-1 on the test images" in out
    assert "published: " in out
    assert not (folder / "training").exists()
    assert (folder / "model.safetensors").read_bytes() == before
    assert "model.safetensors" in hub.repos["user/thin"].commits[hub.repos["user/thin"].refs["main"]]
    code, _, err = run_command(capsys, *command)
    assert code == 2
    assert "holds a checkpoint already; publish it with `eagleeye push`" in err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--macs", "0.5", "0.3"], "a run takes one budget; got macs=0.5; macs=0.3"),
        (["--calibration-images", "0"], "`calibration_images=0`: training images that recompute"),
        (["--macs", "1e12"], "allows more than the full network costs (macs 4.0"),
        (["--macs", "2"], "(`macs` above 1 is an absolute number; fractions are at most 1) is out of reach"),
        (["--dataset", "./no/such/folder"], "`dataset=./no/such/folder`"),
        (["--label-names", "cat", "dog"], "`label_names`"),
        (["--strategy", "nowhere.json#half"], "`strategy=nowhere.json#half` can't be read"),
    ],
)
def test_what_is_wrong_is_named_and_nothing_is_left(inputs, tmp_path, capsys, flags, message):
    code, _, err = run_command(capsys, "compress", *inputs, *FLAGS, "--output", str(tmp_path / "run"), *flags)
    assert code == 2
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert message in line
    assert not (tmp_path / "run" / "config.json").exists()
