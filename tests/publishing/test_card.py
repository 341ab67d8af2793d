"""The model card: complete, valid, and nothing in it that was not measured."""

import re
import warnings

import pytest
import timm
import torch
import yaml

from eagleeye_hf import EagleEyeError, Metrics
from eagleeye_hf.publishing.card import write_card
from eagleeye_hf.publishing.card_checks import check_card, find_license
from eagleeye_hf.publishing.paths import hide_command, hide_paths
from eagleeye_hf.runtimes.latency import Latency
from eagleeye_hf.runtimes.runtime import Place
from tests.helpers import make_model
from tests.publishing.make import whole_facts, write_checkpoint


def card(on_hub: bool = True, **changes) -> str:
    return write_card(whole_facts(make_model("resnet20_cifar"), **changes), "user/thin", on_hub)


def metadata(text: str) -> dict:
    return yaml.safe_load(text.split("---\n")[1])


def test_every_fact_is_told():
    text = card()
    check_card(text, "the card")
    for fact in (
        "| MACs (papers say FLOPs) | 40.6 M | 10.",
        "| parameters | 0.270 M |",
        "| file size | 1.10 MB | 0.60 MB |",
        "| latency, one image, PyTorch on CPU (x86_64), 1 thread | 2.50 ms | 1.50 ms |",
        "| latency, one image, ONNX Runtime on CPU (x86_64), 2 threads | 1.25 ms | 0.750 ms |",
        "with **60% of its milliseconds** (PyTorch on CPU (x86_64), 1 thread)",
        "| top-1 | 90.00% | 87.50% |",
        "| top-5 | 99.00% | 99.00% |",
        "| vanilla | 12.00% |",
        "| adaptive | 58.00% |",
        "saw only 50 held-out training images",
        "- dataset: uoft-cs/cifar10, revision 0b2714987fa478483af9968de7c934580d0bb9a2",
        "- calibration images: 50",
        "- seed: 3",
        "```bash\naccelerate launch recipes/mbv1.py --macs 0.5\n```",
        "| 1 | 1.5000 | 70.00% |",
        "| `layer1.0.conv1` | 16 | 8 | 50% |",
        "| `linear` | 10 | 10 | pinned: carries the model's output |",
        f"timm {timm.__version__}",
        "inherits the limits and biases of resnet20_cifar",
        "@inproceedings{li2020eagleeye",
        "@software{eagleeye_hf",
    ):
        assert fact in text, fact


def test_metadata_is_what_the_hub_reads():
    data = metadata(card(base="mobilenetv1_100.ra4_e3600_r224_in1k"))
    assert data["base_model"] == "timm/mobilenetv1_100.ra4_e3600_r224_in1k"
    assert data["base_model_relation"] == "finetune"
    assert data["library_name"] == "timm"
    assert data["pipeline_tag"] == "image-classification"
    assert {"timm", "pruned"} <= set(data["tags"])
    assert data["datasets"] == ["uoft-cs/cifar10"]
    assert data["license"] == "bsd-2-clause"
    (model,) = data["model-index"]
    (result,) = model["results"]
    assert result["dataset"]["revision"] == "0b2714987fa478483af9968de7c934580d0bb9a2"
    values = {metric["name"]: metric["value"] for metric in result["metrics"]}
    assert values == {"Top-1 accuracy": 0.875, "Top-5 accuracy": 0.99}
    assert {type(value) for value in values.values()} == {float}
    assert metadata(card(base="hf-hub:somebody/network"))["base_model"] == "somebody/network"
    assert "base_model" not in metadata(card())  # the CIFAR networks are not on the Hub
    assert "datasets" not in metadata(card(dataset="cifar10"))  # a local folder is no dataset of the Hub


def test_what_was_not_measured_is_absent():
    bare = card(
        dataset="",
        dataset_revision="",
        metrics={},
        holdout_images=0,
        training_curve=(),
        file_bytes=None,
        latency=(),
        settings={},
        command="",
        license="",
    )
    for word in ("top-1", "latency", "file size", "model-index", "license", "dataset:", "seed", "epoch", "None", "nan"):
        assert word not in bare, word
    with pytest.raises(EagleEyeError, match=r"does not tell the licence .*, nor the test accuracy .*, nor the command"):
        check_card(bare, "the card")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("value: 0.875", "value: good", "`model-index` gives 'good' for Top-1 accuracy"),
        ("license: bsd-2-clause\n", "", "does not tell the licence"),
        ("- seed: 3\n", "", "does not tell the seed"),
        ("library_name: timm", "library_name: [", "the metadata of the card can't be read"),
    ],
)
def test_a_card_edited_into_nonsense_is_refused(old, new, message):
    text = card()
    assert old in text
    with pytest.raises(EagleEyeError, match=message):
        check_card(text.replace(old, new), "the card")


def test_the_code_on_the_card_runs_for_a_folder(tmp_path):
    model, images = write_checkpoint(tmp_path / "run")
    snippets = re.findall(r"```python\n(.*?)```", (tmp_path / "run" / "README.md").read_text(), re.DOTALL)
    assert len(snippets) == 3
    for snippet in snippets:
        names: dict = {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # transformers' own
            exec(snippet, names)
        with torch.inference_mode():
            outputs = names["model"].eval()(images)
        torch.testing.assert_close(getattr(outputs, "logits", outputs), model(images), rtol=1e-4, atol=1e-5)


def test_the_picture_is_drawn(tmp_path):
    plots = pytest.importorskip("eagleeye_hf.reports.result")
    facts = whole_facts(make_model("resnet20_cifar"))
    path = plots.draw_result(facts.graph, facts.strategy, facts.metrics, tmp_path / "a.png", facts.training_curve)
    plain = plots.draw_result(facts.graph, facts.strategy, facts.metrics, tmp_path / "b.png")
    point = plots.draw_result(facts.graph, facts.strategy, facts.metrics, tmp_path / "c.png", facts.training_curve[:1])
    assert {int.from_bytes(png.read_bytes()[16:20], "big") for png in (path, plain, point)} == {1350}  # pixels wide
    assert point.read_bytes() == plain.read_bytes() != path.read_bytes()  # one epoch is no curve


def test_the_last_step_is_drawn_on_test_images_too():
    plots, figures = pytest.importorskip("eagleeye_hf.reports.result"), pytest.importorskip("matplotlib.figure")
    axes = figures.Figure().subplots()
    full, matched, tested = (Metrics(top1=top1, top5=1.0, loss=0.0, num_images=10) for top1 in (0.9, 0.6, 0.5))
    plots.draw_steps(axes, {"full": full, "matched": tested}, {"matched": matched}, "top-1")
    assert [label.get_text() for label in axes.get_xticklabels()] == ["full", "matched", "matched"]
    assert [round(bar.get_height()) for bar in axes.patches] == [90, 60, 50]
    assert [bar.get_hatch() for bar in axes.patches] == ["", "//", ""]


def test_the_split_is_named():
    text = card(split="validation")
    assert "On 100 images of the validation split" in text
    assert "tested on its validation split" in text
    (model,) = metadata(text)["model-index"]
    assert model["results"][0]["dataset"]["split"] == "validation"
    text = card(parted=True)
    assert "images that were set apart of the training images, for the dataset has no others" in text
    assert "tested on training images set apart" in text
    assert metadata(text)["model-index"][0]["results"][0]["dataset"]["split"] == "train"


def test_steps_on_holdout_images_are_told_as_such():
    scores = {name: Metrics(top1=top1, top5=0.9, loss=1.0, num_images=50) for name, top1 in (("adaptive", 0.61),)}
    tests = {
        name: Metrics(top1=top1, top5=0.9, loss=1.0, num_images=100)
        for name, top1 in (("full", 0.9), ("fine-tuned", 0.8))
    }
    text = card(metrics=tests, steps=scores)
    check_card(text, "the card")
    before, after = text.split("On the 50 held-out training images, which chose the network")
    assert "| adaptive | 61.00% |" in after
    assert "| adaptive |" not in before
    assert "| fine-tuned | 80.00% |" in before
    assert "held-out training images, which chose" not in card()


def test_weights_of_a_file_are_not_timms():
    name = "mobilenetv1_100.ra4_e3600_r224_in1k"
    text = card(base=name, local_weights=True)
    assert "base_model" not in metadata(text)
    assert "(weights of a local file)" in text
    assert "huggingface.co/timm" not in text
    assert "pytorch-image-models" not in text
    assert f"[{name}](https://huggingface.co/timm/{name})" in card(base=name)
    assert "[resnet18](https://github.com/huggingface/pytorch-image-models)" in card(base="resnet18")
    assert "pytorch-image-models" not in card()  # the CIFAR networks are not of timm
    assert find_license({"license": "apache-2.0"}, local_weights=False) == "apache-2.0"
    assert find_license({"license": "apache-2.0"}, local_weights=True) == ""
    assert find_license(None, local_weights=False) == ""


def test_no_folder_of_the_machine_is_told(tmp_path):
    text = card(
        base=f"local-dir:{tmp_path}/base",
        dataset=f"{tmp_path}/photos",
        settings={"teacher": f"{tmp_path}/teacher", "calibration images": 9, "seed": 1},
        command=f"/opt/bin/eagleeye compress resnet18 --weights {tmp_path}/w.safetensors --dataset={tmp_path}/photos",
    )
    assert str(tmp_path) not in text
    assert "eagleeye compress resnet18 --weights w.safetensors --dataset=photos" in text
    assert "- teacher: teacher" in text
    assert "- dataset: photos" in text
    check_card(text, "the card")


def test_what_strangers_say_is_text():
    text = card(base="x](javascript:alert(1))\n---\n<img src=x onerror=alert(1)>", settings={"a|b": "<b>", "seed": 1})
    assert "<img" not in text.replace("\\<img", "")
    assert "x\\](javascript" in text
    assert "- a\\|b: \\<b\\>" in text
    assert metadata(text)["library_name"] == "timm"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/home/me/w.safetensors", "w.safetensors"),
        ("~/data/photos/", "photos"),
        ("../runs/one", "one"),
        ("./one", "one"),
        ("C:\\Users\\me\\w.safetensors", "w.safetensors"),
        ("local-dir:/home/me/base", "local-dir:base"),
        ("/home/me/my photos", "my photos"),
        ("uoft-cs/cifar10", "uoft-cs/cifar10"),
        ("hf-hub:timm/resnet18", "hf-hub:timm/resnet18"),
        ("hf://datasets/user/name", "hf://datasets/user/name"),
        ("https://huggingface.co/timm", "https://huggingface.co/timm"),
        ("recipes/mbv1.py", "recipes/mbv1.py"),
        ("1/2 of and/or", "1/2 of and/or"),
        ("weights=/home/me/w.pt, lr 0.1", "weights=w.pt, lr 0.1"),
    ],
)
def test_local_paths_are_hidden(text, shown):
    assert hide_paths(text) == shown
    nested = {"a": [text, 1, None], "b": (text,)}
    assert hide_paths(nested) == {"a": [shown, 1, None], "b": (shown,)}


def test_a_relative_path_is_one_where_it_is_there(tmp_path, monkeypatch):
    (tmp_path / "data" / "photos").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert hide_paths("data/photos") == "photos"
    assert hide_paths("data/others") == "data/others"
    command = "accelerate launch recipes/mbv1.py --dataset data/photos --output=runs/one --weights '/a b/w.pt'"
    assert (
        hide_command(command) == "accelerate launch recipes/mbv1.py --dataset photos --output=runs/one --weights w.pt"
    )


def test_a_card_tells_what_8_bit_integers_give():
    int8 = {
        name: Metrics(top1=top1, top5=0.99, loss=0.4, num_images=100)
        for name, top1 in (("full", 0.89), ("pruned", 0.87))
    }
    place = Place(runtime="onnxruntime", device="CPU (x86_64)", threads=1, batch_size=4, precision="int8")
    latency = [Latency(milliseconds=0.4, full_ms=0.5, place=place)]
    facts = whole_facts(make_model("resnet20_cifar"), int8=int8, int8_bytes=(300_000, 160_000), latency=latency)
    text = write_card(facts, "here")
    for row in (
        "| latency, 4 images, ONNX Runtime on CPU (x86_64), 1 thread, int8 | 0.500 ms | 0.400 ms |",
        "| top-1, int8 | 89.00% | 87.00% |",
        "| file size, int8 | 0.30 MB | 0.16 MB |",
    ):
        assert row in text
    check_card(text, "the card")
