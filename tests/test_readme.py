"""The README's commands and code, run or parsed."""

import importlib.util
import re
import shlex
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from eagleeye_hf import RunConfig
from eagleeye_hf.runs.arguments import parse_config
from tests.helpers import digits_dataset

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text()


DOCS = "\n".join(page.read_text() for page in sorted((ROOT / "docs").glob("*.md")))


def blocks(language: str, text: str = TEXT) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_the_python_code_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train, load = blocks("python")[:2]
    for old, new in (
        ('"mobilenetv1_100.ra4_e3600_r224_in1k", pretrained=True', '"resnet20_cifar"'),
        ('open_splits("ILSVRC/imagenet-1k", like=model)', "open_splits(DATASET, model, **COUNTS)"),
        ("candidates=200", "candidates=2"),
        ("FinetuneConfig(epochs=120)", "FinetuneConfig(epochs=1, batch_size=20)"),
    ):
        assert old in train
        train = train.replace(old, new)
    names = {"DATASET": digits_dataset(100, 20), "COUNTS": {"calibration_images": 20, "holdout_images": 20}}
    exec(train, names)
    exec(load, names)
    assert names["model"].config.label_names[0] == "class 0"


def test_the_example_of_another_objective_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("python", (ROOT / "docs" / "objectives.md").read_text())
    names = {"__name__": "example"}
    exec(code, names)
    assert "IoU: " in capsys.readouterr().out
    assert names["full_score"].reported > 0.5
    assert names["thin_score"].reported > 0.5
    network, images = names["again"], names["torch"].randn(1, 3, 64, 64)
    assert network(images).shape == (1, 1, 64, 64)


@pytest.mark.parametrize("command", re.findall(r"accelerate launch .*?(?=\n\s*(?:\n|#|```))", TEXT, re.DOTALL))
def test_commands_name_existing_recipes_and_flags(command, monkeypatch):
    words = shlex.split(command.replace("\\\n", " "), comments=True)
    recipe = next(i for i, word in enumerate(words) if word.startswith("recipes/"))
    assert (ROOT / words[recipe]).is_file()
    name = Path(words[recipe]).stem
    spec = importlib.util.spec_from_file_location(name, ROOT / words[recipe])
    monkeypatch.setitem(sys.modules, name, module := importlib.util.module_from_spec(spec))
    spec.loader.exec_module(module)
    found = [value for value in vars(module).values() if isinstance(value, type) and issubclass(value, RunConfig)]
    (config_class,) = set(found) - {RunConfig}
    assert parse_config(config_class, words[recipe + 1 :], "", "recipe").search.candidates


@pytest.mark.parametrize(
    "command", re.findall(r"^eagleeye .*?[^\\]$", "\n".join(blocks("bash", TEXT + DOCS)), re.DOTALL | re.MULTILINE)
)
def test_eagleeye_commands_have_these_flags(command):
    name, *words = shlex.split(command.replace("\\\n", " "), comments=True)[1:]
    module = importlib.import_module(f"eagleeye_hf.commands.{name}")
    assert asdict(parse_config(module.Config, words, "", name))


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make ([\w-]+)", "\n".join(blocks("bash")), re.MULTILINE):
        assert f"\n{target}:" in makefile


def test_pictures_exist():
    for path in re.findall(r"!\[.*?\]\((?!http)(.*?)\)", TEXT):
        assert (ROOT / path).is_file(), path
