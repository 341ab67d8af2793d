"""`eagleeye compress`: the whole job, ended at any moment and started again."""

import json
import re
import shutil
import sys
import weakref
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from eagleeye_hf import Budget, EagleEyeError, RunConfig, count_cost, from_pretrained, sample_strategies, trace_model
from eagleeye_hf.cli import main
from eagleeye_hf.configs import flat_dict
from eagleeye_hf.runs import compress, job
from eagleeye_hf.runs.arguments import parse_config
from eagleeye_hf.runs.folder import RunFolder
from eagleeye_hf.search.reading import read_journal
from eagleeye_hf.strategies.files import describe_strategy
from tests.helpers import digits_dataset, make_model, run_command
from tests.hub_server import TOKEN

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")  # huggingface_hub's own
FLAGS = ["--calibration-images", "20", "--holdout-images", "20", "--candidates", "2", "--epochs", "1"]
FLAGS += ["--batch-size", "40", "--num-workers", "0", "--license", "mit", "--runtime", "torch"]
FLAGS += ["--match-steps", "2"]


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
    steps = list(told["holdout_metrics"])
    assert [*steps[:2], steps[-1]] == ["vanilla", "adaptive", "matched"]  # readers are repaired where that helps
    assert not list(finished.glob("training*"))
    settings = yaml.safe_load((finished / "run.yaml").read_text())
    asked = parse_config(RunConfig, [*inputs, *FLAGS, "--output", str(finished)], "", "")
    settled = {"adapt_epochs": 0, "adapt_lr": 0.02, "lr": 0.02}
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
    code, out, err = run_command(capsys, *command, "--seed", "1")
    assert code == 2
    assert "holds the result of other settings (seed=0 there, seed=1 here); choose another folder" in err
    assert not hub.repos
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


def test_blocks_and_a_smaller_image_go_through_the_whole_job(inputs, tmp_path, capsys):
    graph = trace_model(make_model("resnet20_cifar"), image_sizes=(24,))
    strategy = sample_strategies(graph, Budget(macs=0.4), 8, seed=2, dimensions=("width", "depth", "size"))
    chosen = next(s for s in strategy[3:] if s.removed_blocks and s.image_size == 24)
    file, folder = tmp_path / "strategy.json", tmp_path / "run"
    file.write_text(json.dumps(describe_strategy(graph, chosen, "test", "l1")))
    code, out, err = run_command(capsys, "compress", *inputs, *FLAGS, "--strategy", str(file), "--output", str(folder))
    assert code == 0, err
    assert "was found with channels chosen by l1, and gets those by reconstruction" in err
    assert re.search(r"image size +32 px +24 px", out)
    assert re.search(rf"blocks +9 +{9 - len(chosen.removed_blocks)}\b", out)
    model, config = from_pretrained(folder), json.loads((folder / "config.json").read_text())
    assert list(model.pretrained_cfg["input_size"]) == [3, 24, 24]
    assert config["model_args"]["removed_blocks"] == list(chosen.removed_blocks)
    assert sum(p.numel() for p in model.parameters()) == count_cost(graph, chosen).params
    card = (folder / "README.md").read_text()
    assert all(f"`{name}`" in card for name in chosen.removed_blocks)
    assert "with its block" in card
    code, out, _ = run_command(capsys, "evaluate", str(folder), *inputs[3:], "--num-workers", "0", "--json")
    assert json.loads(out)["top1"] == pytest.approx(config["eagleeye"]["metrics"]["fine-tuned"]["top1"], abs=1e-6)
    code, out, _ = run_command(capsys, "inspect", str(folder), "--json")
    told = json.loads(out)
    assert told["kept"] == count_cost(graph, chosen)._asdict()
    assert told["full"] == count_cost(graph, graph.widths)._asdict()
    assert [b["name"] for b in told["blocks"] if b["removed"]] == list(chosen.removed_blocks)
    code, _, err = run_command(capsys, "export", str(folder), "--output", str(tmp_path / "thin.onnx"))
    assert code == 0, err


def test_a_search_in_three_dimensions_ends_in_a_network(inputs, tmp_path, capsys):
    folder = tmp_path / "run"
    flags = [
        "--dimensions",
        "width",
        "depth",
        "size",
        "--image-sizes",
        "20",
        "24",
        "32",
        "--epochs",
        "0",
        "--candidates",
        "6",
    ]
    code, _, err = run_command(capsys, "compress", *inputs, *FLAGS, *flags, "--output", str(folder))
    assert code == 0, err
    origins = [candidate.origin for candidate in read_journal(folder).candidates]
    assert origins[:3] == ["uniform", "depth", "size"]
    assert from_pretrained(folder)(torch.randn(1, 3, 24, 24)).shape == (1, 10)
    code, _, _ = run_command(capsys, "report", str(folder))
    assert code == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--macs", "0.5", "0.3"], "a run takes one budget; got macs=0.5; macs=0.3"),
        (["--calibration-images", "0"], "`calibration_images=0`: training images that recompute"),
        (["--macs", "1e12"], "allows more than the full network costs (macs 4.0"),
        (["--macs", "2"], "(`macs` above 1 is an absolute number; fractions are at most 1) is out of reach"),
        (["--dataset", "./no/such/folder"], "`dataset=./no/such/folder`"),
        (["--dimensions", "size", "--image-sizes", "48"], "`image_sizes` are at most the network's own 32 pixels"),
        (["--dimensions", "width", "width"], "`dimensions` are some of width, depth and size, each once"),
        (["--label-names", "cat", "dog"], "`label_names`"),
        (["--push-to", "not/a/repo"], "`push_to=not/a/repo` is no name of a Hub repo"),
        (["--strategy", "nowhere.json#half", "--dataset", "/nowhere"], "`strategy=nowhere.json#half` can't be read"),
        (["--dimensions", "width", "--image-sizes", "16", "24"], "`image_sizes=16 24` needs `size` among `dimensions`"),
        (["--latncy", "0.5"], "unknown arguments: --latncy 0.5; did you mean --latency? see --help"),
    ],
)
def test_what_is_wrong_is_named_and_nothing_is_left(inputs, tmp_path, capsys, flags, message):
    code, _, err = run_command(capsys, "compress", *inputs, *FLAGS, "--output", str(tmp_path / "run"), *flags)
    assert code == 2
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert message in line
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> str:
    """One folder of four class folders."""
    folder = tmp_path_factory.mktemp("photographs")
    rows = digits_dataset(100)["train"].filter(lambda row: row["label"] < 4)
    for number, row in enumerate(rows):
        place = folder / f"kind {row['label']}" / f"{number}.png"
        place.parent.mkdir(exist_ok=True)
        row["image"].save(place)
    return str(folder)


OPEN = ["--candidates", "2", "--epochs", "1", "--num-workers", "0", "--license", "mit", "--runtime", "torch"]
OPEN += ["--match-steps", "2"]


def test_a_plan_is_made_and_nothing_is_done(inputs, photographs, tmp_path, capsys):
    command = ["compress", *inputs[:3], "--dataset", photographs, *OPEN, "--output", str(tmp_path / "run"), "--dry-run"]
    code, out, _ = run_command(capsys, *command)
    assert code == 0
    assert not (tmp_path / "run").exists()
    assert re.search(r"images +20 train, 6 calibrate, 6 score, 8 test \(split test\)\n", out)
    assert re.search(r"adaptation +40 epochs of 3 steps, 8 images a step", out)
    assert re.search(r"search +2 candidates, macs=0.5", out)
    assert "note: the network's head of 10 outputs gives way to a new one for 4 classes" in out
    assert "8 of its 40 training images are set apart for testing" in out
    code, out, _ = run_command(capsys, *command, "--json")
    plan = json.loads(out)
    assert [phase["name"] for phase in plan["phases"]] == [
        "adaptation",
        "search",
        "matching",
        "fine-tuning",
        "measuring",
    ]
    assert plan["seconds"] == pytest.approx(sum(phase["seconds"] for phase in plan["phases"]))
    assert all(phase["seconds"] > 0 for phase in plan["phases"])
    code, out, err = run_command(capsys, *command, "--dimensions", "width", "--macs", "0.05")
    assert (code, out) == (2, "")
    assert "the budget (macs=0.05) is out of reach" in err, "said before the adaptation"


def test_another_dataset_gets_a_head_of_its_own(inputs, photographs, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "run"
    command = ["compress", *inputs[:3], "--dataset", photographs, *OPEN, "--adapt-epochs", "2", "--output", str(folder)]
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/eagleeye", *command])
    code, out, err = run_command(capsys, *command, "--json")
    assert code == 0, err
    assert set(json.loads(out)) == {"folder", "metrics", "widths"}
    told = re.findall(r"^(\d) of 5: ([\w-]+)", err, re.MULTILINE)
    assert told == [*zip("12345", ["adaptation", "search", "matching", "fine-tuning", "measuring"], strict=True)]
    full, thin = from_pretrained(folder / "full"), from_pretrained(folder)
    assert full(torch.randn(1, 3, 32, 32)).shape == thin(torch.randn(1, 3, 32, 32)).shape == (1, 4)
    assert thin.pretrained_cfg["label_names"] == [f"kind {i}" for i in range(4)]
    assert sum(p.numel() for p in thin.parameters()) < sum(p.numel() for p in full.parameters())
    card = (folder / "README.md").read_text()
    assert "- full network: a new head for 4 classes, then trained for 2 epochs on " in card
    assert "top-1 |" in card
    assert "top-5" not in card
    assert "```bash\neagleeye compress resnet20_cifar --weights weights.safetensors" in card
    assert main(["search", str(folder / "full"), "--dataset", photographs, "--candidates", "2", "--runtime", "torch",
                 "--output", str(tmp_path / "search")]) == 0  # fmt: skip


def test_an_adaptation_goes_on_with_its_own_settings_alone(inputs, photographs, tmp_path, capsys, monkeypatch):
    def stop(*args: object, **options: object) -> None:
        raise EagleEyeError("killed")

    monkeypatch.setattr(job, "compress_model", stop)
    command = ["compress", *inputs[:3], "--dataset", photographs, *OPEN, "--adapt-epochs", "1"]
    command += ["--output", str(tmp_path / "run")]
    assert "killed" in run_command(capsys, *command)[2]
    code, _, err = run_command(capsys, *command, "--seed", "1")
    assert code == 2
    assert "other settings" in err
    assert "epoch 1/1" not in run_command(capsys, *command)[2], "it is not done again"


def test_without_adaptation_other_classes_are_refused(inputs, photographs, tmp_path, capsys):
    command = ["compress", *inputs[:3], "--dataset", photographs, *OPEN, "--output", str(tmp_path / "run")]
    code, _, err = run_command(capsys, *command, "--adapt-epochs", "0")
    assert code == 2
    assert "has 4 classes, but the model has 10 outputs" in err


def test_what_scored_is_gone_before_training(inputs, tmp_path, monkeypatch):
    scored, before = [], []
    make_score, match_teacher = compress.make_score, compress.match_teacher

    def make(*given):
        score = make_score(*given)
        scored.append(weakref.ref(score.images))
        return score

    def match(*given, **options):
        before.extend(images() for images in scored)
        return match_teacher(*given, **options)

    monkeypatch.setattr(compress, "make_score", make)
    monkeypatch.setattr(compress, "match_teacher", match)
    assert main(["compress", *inputs, *FLAGS, "--epochs", "0", "--output", str(tmp_path / "run")]) == 0
    assert before == [None]


@pytest.mark.parametrize(
    ("flags", "streaming"),
    [
        ([], False),
        (["--epochs", "30"], False),
        (["--epochs", "1", "--adapt-epochs", "0"], True),
        (["--epochs", "1", "--adapt-epochs", "1"], False),
        (["--epochs", "30", "--streaming", "True"], True),
        (["--epochs", "1", "--streaming", "False"], False),
        (["--dry-run"], True),
    ],
)
def test_a_dataset_on_the_hub_is_downloaded_where_training_reads_it_again(
    inputs, tmp_path, monkeypatch, capsys, flags, streaming
):
    asked = []

    def load(*given, streaming, **options):
        asked.append(streaming)
        raise OSError("Not enough disk space. Needed: 300 GB")

    monkeypatch.setattr("datasets.load_dataset", load)
    monkeypatch.setattr("eagleeye_hf.data.source.find_commit", lambda *_: None)
    arguments = [*inputs[:3], "--dataset", "user/photographs", *flags, "--output", str(tmp_path / "run")]
    assert main(["compress", *arguments]) == 2
    assert asked == [streaming]
    assert (
        "put the cache elsewhere with HF_HOME, or read it as a stream (`--streaming True`)" in capsys.readouterr().err
    )
