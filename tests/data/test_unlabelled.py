"""Images without labels: the full network's outputs stand for them."""

import json
from dataclasses import replace

import datasets
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy.special import log_softmax, rel_entr, softmax

from eagleeye_hf import EagleEyeError, from_pretrained, open_splits
from eagleeye_hf.data.unlabelled import TaughtImages
from eagleeye_hf.evaluation.objective import Agreement
from eagleeye_hf.networks.config import InputConfig
from eagleeye_hf.networks.load import adjust_input
from tests.helpers import digits_dataset, make_model, run_command


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> str:
    """One folder of images, in no class folders."""
    folder = tmp_path_factory.mktemp("flat")
    for number, row in enumerate(digits_dataset(100)["train"]):
        row["image"].save(folder / f"{number}.png")
    return str(folder)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
    file = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    save_file(make_model("resnet20_cifar").state_dict(), file)
    return str(file)


def test_the_whole_job_without_a_label(photographs, weights, tmp_path, capsys):
    command = ["compress", "resnet20_cifar", "--weights", weights, "--dataset", photographs, "--num-workers", "0"]
    command += ["--candidates", "4", "--match-steps", "20", "--runtime", "torch", "--license", "mit"]
    code, _, err = run_command(capsys, *command, "--output", str(tmp_path / "run"))
    assert code == 2
    assert "has images alone and no class labels" in err
    assert "Without labels: `eagleeye compress --epochs 0`" in err
    code, out, err = run_command(capsys, *command, "--epochs", "0", "--output", str(tmp_path / "run"))
    assert code == 0, err
    assert "note: the images have no labels: candidates are ranked by how far their outputs are" in err
    assert "agreement on the test images\n  full " in out
    assert "top-1" not in out
    told = json.loads((tmp_path / "run" / "config.json").read_text())["eagleeye"]
    assert told["labelled"] is False
    assert told["metrics"]["full"]["top1"] == 1.0
    journal = (tmp_path / "run" / "search.jsonl").read_text()
    assert '"ranks": "divergence"' in journal
    card = (tmp_path / "run" / "README.md").read_text()
    assert "so no accuracy was measured: agreement is" in card
    assert "| agreement | 100.00% |" in card
    assert "top-1" not in card
    assert "model-index" not in card
    assert from_pretrained(tmp_path / "run")(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


def test_decisions_stand_for_labels(photographs):
    model = make_model("resnet20_cifar")
    data = open_splits(photographs, model, calibration_images=10, holdout_images=20, needs_labels=False)
    assert not data.labelled
    taught = TaughtImages(data.holdout, model)
    for (images, found), (_, outputs) in zip(taught.cached_batches(8), taught.taught_batches(8), strict=True):
        with torch.no_grad():
            expected = model(images)
        assert torch.equal(found, expected.argmax(1))
        torch.testing.assert_close(outputs, expected, rtol=1e-4, atol=1e-4)
    assert sum(len(labels) for _, labels in TaughtImages(data.test, model).batches(8)) == data.test.count()


def test_the_full_network_decides_on_images_of_its_own_size(photographs):
    model = make_model("resnet20_cifar")
    data = open_splits(photographs, model, calibration_images=10, holdout_images=20, needs_labels=False)
    taught = replace(data, holdout=TaughtImages(data.holdout, model), found_test=TaughtImages(data.test, model))
    small = taught.seen_by(adjust_input(make_model("resnet20_cifar"), InputConfig(image_size=20)))
    for kind in ("holdout", "test"):
        expected = torch.cat([model(images).argmax(1) for images, _ in getattr(data, kind).batches(8)])
        images, found = map(torch.cat, zip(*getattr(small, kind).batches(8), strict=True))
        assert images.shape[2:] == (20, 20)
        assert torch.equal(found, expected)
        if kind == "holdout":
            outputs = torch.cat([outputs for _, outputs in small.holdout.taught_batches(8)])
            assert torch.equal(outputs.argmax(1), expected)


def test_a_search_without_a_label(photographs, weights, tmp_path, capsys):
    command = ["search", "resnet20_cifar", "--weights", weights, "--dataset", photographs, "--num-workers", "0"]
    command += ["--candidates", "4", "--runtime", "torch", "--output", str(tmp_path / "search")]
    code, out, err = run_command(capsys, *command)
    assert code == 0, err
    assert '"ranks": "divergence"' in (tmp_path / "search" / "search.jsonl").read_text()
    assert "agreement" in out
    assert "top-1" not in out


def test_agreement_is_the_divergence_from_the_full_networks_outputs():
    random = np.random.default_rng(0)
    wanted, found = random.normal(size=(2, 12, 10)) * 3
    model = torch.nn.Linear(10, 10, bias=False)
    model.weight.data = torch.eye(10)
    batches = [tuple(torch.tensor(part[rows], dtype=torch.float32) for part in (found, wanted)) for rows in
               (slice(8), slice(8, 12))]  # fmt: skip
    score = Agreement().measure(model, batches)
    assert score.loss == pytest.approx(rel_entr(softmax(wanted, 1), softmax(found, 1)).sum(1).mean(), rel=1e-4)
    assert score.reported == np.mean(wanted.argmax(1) == found.argmax(1))
    assert score.num_images == 12
    chance = Agreement().chance(model, batches[0])
    entropy = -(softmax(wanted[:8], 1) * log_softmax(wanted[:8], 1)).sum(1).mean()
    assert chance.loss == pytest.approx(np.log(10) - entropy, rel=1e-4)
    assert chance.reported == 0.1


def test_labels_that_are_there_are_used(photographs):
    model = make_model("resnet20_cifar")
    counts = {"calibration_images": 10, "holdout_images": 10}
    assert open_splits(digits_dataset(60), model, **counts, needs_labels=False).labelled
    with pytest.raises(EagleEyeError, match="has images alone and no class labels"):
        open_splits(photographs, model, **counts)
    stream = datasets.IterableDatasetDict(
        {"train": digits_dataset(60)["train"].remove_columns("label").to_iterable_dataset()}
    )
    with pytest.raises(EagleEyeError, match="has no labels and is a stream; download it first"):
        open_splits(stream, model, **counts, needs_labels=False)
