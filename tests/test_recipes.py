"""The recipes, run as users run them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from eagleeye_hf import EagleEyeError, from_pretrained, load_model
from tests.helpers import SHARED, needs_shared
from tests.hub_server import TOKEN

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = os.environ | {"ACCELERATE_USE_CPU": "true", "HF_HUB_OFFLINE": "1"}
SHORT = ["--candidates", "3", "--calibration-images", "32", "--holdout-images", "32"]
SHORT += ["--match-steps", "2", "--no-matched"]
RESNET = ["--model", "resnet20_cifar", "--weights", str(SHARED / "models" / "resnet20_cifar10.safetensors")]
CIFAR = ["--dataset", str(SHARED / "data" / "cifar10"), "--num-workers", "0", "--runtime", "torch"]


def run(recipe: str, *flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "recipes" / recipe), *flags]
    environment = ENVIRONMENT | environment
    return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT, check=False)


def test_quickstart_from_training_to_publishing(tmp_path, hub):
    output = tmp_path / "run"
    publish = ["--push-to", "user/digits", "--private", "--license", "bsd-3-clause"]
    flags = [*SHORT, "--adapt-epochs", "1", "--epochs", "1", "--output", str(output), *publish]
    done = run("quickstart.py", *flags, HF_TOKEN=TOKEN, HF_HUB_OFFLINE="0")
    assert done.returncode == 0, done.stderr[-3000:]
    repo = hub.repos["user/digits"]
    assert repo.private
    assert f"published: {hub.url}/user/digits/commit/{repo.refs['main']}" in done.stdout
    published = repo.commits[repo.refs["main"]]
    for name in ("README.md", "config.json", "model.safetensors", "result.png", "search.jsonl"):
        assert published[name] == (output / name).read_bytes()
    card = published["README.md"].decode()
    for fact in ("| 1 | ", "license: bsd-3-clause", "hf-hub:user/digits"):
        assert fact in card
    for word in ("full", "vanilla", "adaptive", "matched", "fine-tuned", "MACs", "parameters", "file size", "latency"):
        assert word in done.stdout
    assert {path.name for path in output.iterdir()} == {
        ".eagleeye",
        "README.md",
        "config.json",
        "model.safetensors",
        "result.png",
        "run.yaml",
        "search.jsonl",
        "strategy.json",
    }
    assert from_pretrained(output)(torch.randn(1, 3, 32, 32)).shape == (1, 10)
    again = run("quickstart.py", *SHORT, "--adapt-epochs", "0", "--output", str(output))
    assert again.returncode == 2
    assert "holds a checkpoint already" in again.stderr


@needs_shared
def test_the_main_recipe_on_real_images(tmp_path):
    strategy = tmp_path / "strategy.json"
    strategy.write_text(json.dumps({"ratios": [0.3] * 12}))
    output = tmp_path / "run"
    flags = [*RESNET, *CIFAR, *SHORT, "--epochs", "0", "--strategy", str(strategy), "--output", str(output)]
    done = run("mbv1.py", *flags)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads((output / "config.json").read_text())["eagleeye"]
    metrics, steps = told["metrics"], told["holdout_metrics"]
    assert metrics["full"]["top1"] == pytest.approx(0.8828, abs=0.002)
    assert list(metrics) == ["full", "matched"]  # the test images are read twice
    assert {found["num_images"] for found in metrics.values()} == {10_000}
    assert {found["num_images"] for found in steps.values()} == {32}
    assert list(steps) == ["vanilla", "adaptive", "compensated", "matched"]
    assert metrics["matched"]["top1"] < metrics["full"]["top1"]


@needs_shared
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([*RESNET, "--dataset", "/nowhere"], "`dataset=/nowhere` can't be opened"),
        ([*RESNET, *CIFAR, *SHORT, "--macs", "0.01"], "out of reach: .* the smallest model still has"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                (["--config", "nowhere.yaml"], "`config=nowhere.yaml` can't be read"),
                ([*RESNET[:2], "--weights", str(ROOT / "README.md")], "can't be read as safetensors"),
                (["--epoch-number", "5"], "unknown arguments: --epoch-number 5"),
                (["--model", "resnet20_cifra"], "is no model of timm; did you mean"),
                ([*RESNET, *CIFAR, *SHORT, "--macs", "1.5"], "`macs` is a fraction of the full model"),
                ([*RESNET, *CIFAR, *SHORT, "--macs", "0.5", "0.3"], "a run takes one budget; got macs=0.5; macs=0.3"),
                (["--batch_size", "5"], "--batch_size; did you mean --batch-size?"),
                (["--model", "resnet56_cifar", *RESNET[2:]], "does not fit `model=resnet56_cifar`"),
                (["--model", "resnet18"], "its trained weights can't be loaded"),
                (
                    [*RESNET, *CIFAR, *SHORT, "--push-to", "user/thin"],
                    "`push_to=user/thin` needs a licence for the card",
                ),
            )
        ),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, flags, message):
    import re

    done = run("mbv1.py", *flags, "--output", str(tmp_path / "run"))
    assert done.returncode == 2, done.stderr[-3000:]
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert re.search(message, lines[0]), lines[0]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_network_without_batchnorm_is_refused(tmp_path):
    save_file(timm.create_model("test_convnext").state_dict(), tmp_path / "weights.safetensors")
    with pytest.raises(EagleEyeError, match="has no BatchNorm layer with running statistics"):
        load_model("test_convnext", str(tmp_path / "weights.safetensors"))


@pytest.mark.slow
def test_two_processes_run_a_recipe_and_say_so(tmp_path):
    launcher = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
    launcher += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    flags = [*SHORT, "--adapt-epochs", "1", "--epochs", "1", "--output", str(tmp_path / "run")]
    command = [sys.executable, *launcher, str(ROOT / "recipes" / "quickstart.py"), *flags]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    told = "fine-tuning on 2 processes (cpu, no mixed precision): 32 images a step (16 per process)"
    assert done.stderr.count(told) == 2
    assert done.stdout.count("saved in") == 1
    found = json.loads((tmp_path / "run" / "config.json").read_text())["eagleeye"]
    assert {m["num_images"] for m in found["metrics"].values()} == {360}
    assert {m["num_images"] for m in found["holdout_metrics"].values()} == {32}
    assert [record["images"] for record in found["training"]] == [1437 - 64]
    rows = [json.loads(line) for line in (tmp_path / "run" / "search.jsonl").read_text().splitlines()[1:]]
    assert sorted({row["index"] for row in rows}) == [0, 1, 2]


def test_recipes_are_short_and_use_public_names():
    for path in (ROOT / "recipes").glob("*.py"):
        text = path.read_text()
        assert len(text.splitlines()) <= 75, path
        assert "from eagleeye_hf." not in text
