"""`eagleeye study`: the whole of it, ended at any moment and started again."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import scipy.stats
import torch
from safetensors.torch import load_file, save_file

from eagleeye_hf import choose_channels, evaluate_model, open_splits, slice_model, trace_model
from eagleeye_hf.cli import main
from eagleeye_hf.study import tuning
from tests.helpers import digits_dataset, make_model, run_command

ROOT = Path(__file__).resolve().parents[2]
FLAGS = ["--calibration-images", "64", "--holdout-images", "40", "--draws", "1", "--subnets", "3", "--macs", "0.5"]
FLAGS += [
    "--epochs",
    "1",
    "--batch-size",
    "16",
    "--max-steps",
    "6",
    "--lr",
    "0.1",
    "--match-steps",
    "1",
    "--candidates",
    "4",
]
FLAGS += [
    "--runtime",
    "torch",
    "--num-workers",
    "0",
    "--format",
    "float32",
    "--divisor",
    "1",
    "--comparators",
    "evolution",
    "global",
]
FILES = ["REPORT.md", "study.html", "study.json", "subnets.csv", "correlation.csv", "comparators.csv"]
FILES += ["batchnorm.csv", "weights.csv", "images.csv"]
FIGURES = ["histograms", "scatter", "correlation", "comparators", "batchnorm", "weights", "images"]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("inputs")
    save_file(make_model("resnet20_cifar").state_dict(), folder / "weights.safetensors")
    (folder / "data").mkdir()
    for split, rows in digits_dataset().items():
        rows.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return ["resnet20_cifar", "--weights", str(folder / "weights.safetensors"), "--dataset", str(folder / "data")]


@pytest.fixture(scope="module")
def finished(inputs, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "study"
    assert main(["study", *inputs, *FLAGS, "--output", str(folder)]) == 0
    return folder


def table(folder: Path, name: str) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "report" / f"{name}.csv").read_text().splitlines()))


def outcomes(folder: Path) -> list[dict[str, str]]:
    """The rows of sub-nets without what a clock told."""
    rows = table(folder, "subnets")
    return [{name: value for name, value in row.items() if not name.startswith("seconds")} for row in rows]


def test_a_study_ends_with_tables_figures_and_a_report(finished):
    names = {path.name for path in (finished / "report").iterdir()}
    assert names == {*FILES, *(f"{name}.{kind}" for name in FIGURES for kind in ("png", "svg"))}
    report = (finished / "report" / "REPORT.md").read_text()
    assert "## What was found" in report
    assert "The claim" in report
    assert "1 epochs of 6 steps, 16 images a step (96 of " in report
    facts = json.loads((finished / "report" / "study.json").read_text(), parse_constant=pytest.fail)
    assert set(facts["tables"]) == {name.removesuffix(".csv") for name in FILES[3:]}
    assert {row["method"] for row in facts["tables"]["comparators"]} == {"uniform", "evolution", "global"}
    assert len(facts["tables"]["batchnorm"]) == 19
    assert not (finished / "training" / "0").exists()


def test_accuracy_is_that_of_the_kept_weights_on_the_test_images(finished, inputs):
    model = make_model("resnet20_cifar")
    graph = trace_model(model)
    data = open_splits(inputs[-1], model, calibration_images=64, holdout_images=40)
    rows = [json.loads(line) for line in (finished / "study.jsonl").read_text().splitlines()[1:]]
    row = rows[1]
    images = data.calibration.cached_batches()  # all of them, for there is one draw
    keep = choose_channels(model, graph, row["strategy"]["widths"], "reconstruction", batches=images)
    thin = slice_model(model, graph, keep)
    thin.load_state_dict(load_file(finished / "weights" / f"{row['index']:05}.safetensors"))
    found = evaluate_model(thin, data.test.batches())
    assert row["tuned"]["test"]["top1"] == pytest.approx(found.top1)
    assert row["tuned"]["test"]["loss"] == pytest.approx(found.loss, rel=1e-4)
    assert row["tuned"]["holdout"]["num_images"] == 40


def test_the_correlations_are_those_of_the_table_of_sub_nets(finished):
    pool = [row for row in table(finished, "subnets") if row["in_pool"] == "True"]
    assert len(pool) == 3
    assert len({row["params"] for row in pool}) == 3
    truth = [float(row["test top-1"]) for row in pool]
    found = {row["score"]: row for row in table(finished, "correlation")}
    for score, sign in (("adaptive loss", -1), ("matched top-1", 1)):
        values = [sign * float(row[score]) for row in pool]
        if len(set(values)) > 1 and len(set(truth)) > 1:
            expected = scipy.stats.spearmanr(values, truth)[0]
            assert float(found[score]["spearman"]) == pytest.approx(expected, abs=1e-9)
        chosen = truth[max(range(3), key=values.__getitem__)]
        assert float(found[score]["regret"]) == pytest.approx(100 * (max(truth) - chosen))
    assert float(found["random choice"]["regret"]) == pytest.approx(100 * (max(truth) - sum(truth) / 3))


@pytest.mark.parametrize("moment", ["save_weights", pytest.param("Tuner.measure_test", marks=pytest.mark.slow)])
def test_a_killed_study_goes_on_to_the_same_table(finished, inputs, tmp_path, monkeypatch, moment, capsys):
    """After the training of the second sub-net and before its weights are kept; before it is measured."""
    calls: list[int] = []
    owner, name = (
        (tuning, moment) if "." not in moment else (getattr(tuning, moment.split(".")[0]), moment.split(".")[1])
    )
    real = getattr(owner, name)

    def killed(*arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(owner, name, killed)
    command = ["study", *inputs, *FLAGS, "--output", str(tmp_path / "study")]
    code, _, err = run_command(capsys, *command)
    assert code == 130
    assert "the same command goes on from here" in err
    assert len((tmp_path / "study" / "study.jsonl").read_text().splitlines()) == 2
    monkeypatch.undo()
    assert main(command) == 0
    assert outcomes(tmp_path / "study") == outcomes(finished)


def test_a_finished_study_trains_nothing_again(finished, inputs, tmp_path, monkeypatch, capsys):
    shutil.copytree(finished, tmp_path / "study")
    shutil.rmtree(tmp_path / "study" / "report")
    monkeypatch.setattr(tuning, "finetune_model", pytest.fail)
    code, out, _ = run_command(capsys, "study", *inputs, *FLAGS, "--output", str(tmp_path / "study"), "--json")
    assert code == 0
    told = json.loads(out)
    assert told["folder"] == str(tmp_path / "study" / "report")
    assert outcomes(tmp_path / "study") == outcomes(finished)


def test_a_finished_study_goes_on_with_more_sub_nets(finished, inputs, tmp_path, monkeypatch):
    shutil.copytree(finished, tmp_path / "study")
    real, trained = tuning.finetune_model, []
    monkeypatch.setattr(tuning, "finetune_model", lambda *a, **o: trained.append(1) or real(*a, **o))
    flags = ["--subnets", "4", "--comparators", "evolution", "--examined", "2"]
    assert main(["study", *inputs, *FLAGS, *flags, "--output", str(tmp_path / "study")]) == 0
    assert len(trained) == 1
    pool = [row for row in table(tmp_path / "study", "subnets") if row["in_pool"] == "True"]
    before = [row for row in table(finished, "subnets") if row["in_pool"] == "True"]
    assert len(pool) == 4
    assert pool[:3] == before


def test_other_settings_are_refused(finished, inputs, capsys):
    command = ["study", *inputs, *FLAGS, "--output", str(finished)]
    code, _, err = run_command(capsys, *command, "--lr", "0.5")
    assert code == 2
    assert "was started with other settings (lr: 0.1 then, 0.5 now)" in err
    code, _, err = run_command(capsys, *command, "--epochs", "0")
    assert code == 2
    assert "`epochs=0`: a study compares scores with accuracy after fine-tuning; give at least 1" in err


def test_a_dry_run_says_how_long_and_does_nothing(inputs, tmp_path, capsys):
    code, out, _ = run_command(capsys, "study", *inputs, *FLAGS, "--output", str(tmp_path / "new"), "--dry-run")
    assert code == 0
    assert "5 sub-nets, 1 epoch of 6 steps each" in out
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_two_processes_make_the_table_of_one(finished, inputs, tmp_path):
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    command = ["-m", "eagleeye_hf", "study", *inputs, *FLAGS, "--output"]
    for name, launcher in (("one", []), ("two", launch)):
        told = subprocess.run(
            [sys.executable, *launcher, *command, str(tmp_path / name)],
            env=environment,
            cwd=ROOT,
            text=True,
            capture_output=True,
        )
        assert told.returncode == 0, told.stderr[-3000:]
    assert outcomes(tmp_path / "one") == outcomes(tmp_path / "two")
    first, second = (load_file(tmp_path / name / "weights" / "00002.safetensors") for name in ("one", "two"))
    assert all(torch.equal(tensor, second[key]) for key, tensor in first.items())
