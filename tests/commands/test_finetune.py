"""`eagleeye finetune`."""

import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

from eagleeye_hf import count_cost, from_pretrained, save_pretrained, slice_model, trace_model
from eagleeye_hf.cli import main
from eagleeye_hf.publishing.card_checks import check_card
from tests.helpers import digits_dataset, make_model, random_keep

COUNTS = [
    "--calibration-images",
    "20",
    "--holdout-images",
    "20",
    "--num-workers",
    "0",
    "--runtime",
    "torch",
    "--batch-size",
    "20",
]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("digits")
    for split, rows in digits_dataset().items():
        rows.to_parquet(folder / f"{split}.parquet")
    return str(folder)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    model = make_model("resnet20_cifar", pretrained_cfg_overlay={"input_size": (3, 40, 40)})
    graph = trace_model(model)
    keep = random_keep(graph, 0)
    widths = {g.name: len(keep.get(g.name, range(g.channels))) for g in graph.groups}
    folder = tmp_path_factory.mktemp("pruned") / "run"
    facts = {"base_model": "resnet20_cifar", "widths": widths}
    return save_pretrained(slice_model(model, graph, keep), folder, provenance=facts)


def test_a_checkpoint_is_trained_further(checkpoint, dataset, tmp_path, capsys):
    output, weights = tmp_path / "new", tmp_path / "base.safetensors"
    save_file(make_model("resnet20_cifar").state_dict(), weights)
    teacher = ["--teacher", "resnet20_cifar", "--teacher-weights", str(weights)]
    flags = ["--dataset", dataset, "--epochs", "2", "--lr", "0.05", "--output", str(output), "--json"]
    flags += ["--license", "mit"]
    assert main(["finetune", str(checkpoint), *flags, *COUNTS, *teacher]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["fine-tuned"]["num_images"] == told["before"]["num_images"] == 40
    config = json.loads((output / "config.json").read_text())
    assert config["label_names"] == [f"class {i}" for i in range(10)]
    facts = config["eagleeye"]
    assert facts["base_model"] == "resnet20_cifar"
    assert facts["metrics"]["fine-tuned"] == told["fine-tuned"]
    assert [record["epoch"] for record in facts["training"]] == [1, 2]
    before, after = load_file(checkpoint / "model.safetensors"), load_file(output / "model.safetensors")
    assert {key: tensor.shape for key, tensor in before.items()} == {key: tensor.shape for key, tensor in after.items()}
    assert not torch.equal(before["conv1.weight"], after["conv1.weight"])
    assert {path.name for path in output.iterdir()} == {
        ".eagleeye",
        "README.md",
        "config.json",
        "model.safetensors",
        "run.yaml",
    }
    thin = trace_model(from_pretrained(output))
    cost, full = count_cost(thin, thin.widths), trace_model(make_model("resnet20_cifar"), (3, 40, 40))
    card = ModelCard.load(output / "README.md")
    assert f"{cost.macs / count_cost(full, full.widths).macs:.0%} of the MACs" in card.content
    assert f" | {cost.macs / 1e6:.1f} M |\n" in card.content
    assert card.data.license == "mit"
    check_card(card.content, "the card")


def test_a_card_tells_what_is_true_of_these_images_and_weights(dataset, tmp_path):
    """What was measured on other images, or of agreement, stays out; private weights have no licence of timm's."""
    name = "test_resnet.r160_in1k"
    model = make_model(name, num_classes=10, pretrained_cfg_overlay={"input_size": (3, 32, 32)})
    assert model.pretrained_cfg["license"]
    graph = trace_model(model)
    keep = random_keep(graph, 0)
    measured = {"top1": 1.0, "top5": 1.0, "loss": 0.0, "num_images": 16}
    facts = {
        "base_model": name,
        "widths": {g.name: len(keep.get(g.name, range(g.channels))) for g in graph.groups},
        "metrics": {"full": measured, "matched": measured},
        "holdout_metrics": {"adaptive": measured},
        "labelled": False,
        "config": {"weights": "mine.safetensors"},
    }
    before = save_pretrained(slice_model(model, graph, keep), tmp_path / "before", provenance=facts)
    flags = ["--dataset", dataset, "--epochs", "1", "--lr", "0.01", *COUNTS]
    assert main(["finetune", str(before), *flags, "--output", str(tmp_path / "after")]) == 0
    card = ModelCard.load(tmp_path / "after" / "README.md")
    assert "100.00%" not in card.content
    assert "license" not in card.data.to_dict()
    assert "base_model" not in card.data.to_dict()
    told = json.loads((tmp_path / "after" / "config.json").read_text())["eagleeye"]
    assert list(told["metrics"]) == ["fine-tuned"]
    assert (told["labelled"], told["local_weights"]) == (True, True)
    assert main(["finetune", str(tmp_path / "after"), *flags, "--output", str(tmp_path / "again")]) == 0
    again = json.loads((tmp_path / "again" / "config.json").read_text())["eagleeye"]
    assert again["tested_on"] == told["tested_on"]
    assert "license" not in ModelCard.load(tmp_path / "again" / "README.md").data.to_dict()


def test_a_network_of_timms_is_described_as_it_was_loaded(dataset, tmp_path):
    weights = tmp_path / "mine.safetensors"
    save_file(make_model("test_resnet", num_classes=10).state_dict(), weights)
    flags = ["--dataset", dataset, "--epochs", "1", "--lr", "0.01", "--image-size", "48", *COUNTS]
    assert main(["finetune", "test_resnet", "--weights", str(weights), *flags, "--output", str(tmp_path / "new")]) == 0
    thin = trace_model(from_pretrained(tmp_path / "new"))
    assert thin.input_size == (3, 48, 48)
    cost = count_cost(thin, thin.widths)
    content = (tmp_path / "new" / "README.md").read_text()
    assert f" | {cost.macs / 1e6:.1f} M | {cost.macs / 1e6:.1f} M |\n" in content
    assert "3 x 160 x 160" not in content


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dataset", "/nowhere"], "`dataset=/nowhere` can't be opened"),
        (["--dataset", "DATASET", "--lr", "0"], "`lr` is a number, above 0; got 0.0"),
        (["--dataset", "DATASET", "--epochs", "1.5"], "`--epochs` is an integer, at least 0; got 1.5"),
        (["--dataset", "DATASET", "--optimizer", "sdg"], "`optimizer=sdg` is not known to timm"),
        (["--dataset", "DATASET", "--tracker", "paper"], "`tracker=paper` is unknown"),
        (["--dataset", "DATASET", "--augment", "rnd-m9"], "`augment=rnd-m9` is not understood by timm"),
        (["--dataset", "DATASET", "--temperature", "inf"], "`temperature` is a number, above 0; got inf"),
        (["--dataset", "DATASET", "--teacher", "resnet19"], "`model=resnet19` is no model of timm"),
        (["--dataset", "DATASET", "--image-column", "picture"], "`image_column=picture` is no column"),
        (["--dataset", "DATASET", "--output", "CHECKPOINT"], "holds a checkpoint already"),
    ],
)
def test_bad_input_is_one_clear_line(checkpoint, dataset, tmp_path, capsys, flags, message):
    known = {"DATASET": dataset, "CHECKPOINT": str(checkpoint)}
    flags = [known.get(flag, flag) for flag in flags]
    assert main(["finetune", str(checkpoint), "--output", str(tmp_path / "new"), *COUNTS, *flags]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "new" / "config.json").exists()


def test_a_tracker_writes_beside_the_checkpoint(dataset, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from eagleeye_hf import FinetuneConfig, finetune_model, open_splits

    model = make_model("resnet20_cifar")
    data = open_splits(dataset, model, calibration_images=20, holdout_images=20)
    config = FinetuneConfig(epochs=2, batch_size=40, lr=0.01, tracker="tensorboard")
    curve: list = []
    finetune_model(
        model, data.train, config, holdout=data.holdout, checkpoint=tmp_path / "training", on_epoch=curve.append
    )
    (events,) = (tmp_path / "logs").rglob("events.out.tfevents.*.0")
    seen = EventAccumulator(str(events))
    seen.Reload()
    assert [e.value for e in seen.Scalars("loss")] == pytest.approx([record.loss for record in curve])
    assert [e.value for e in seen.Scalars("top1")] == pytest.approx([record.top1 for record in curve])
