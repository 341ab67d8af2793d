"""The README's commands and code, run or parsed."""

import importlib.util
import json
import re
import shlex
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from eagleeye_hf import RunConfig, trace_model
from eagleeye_hf.cli import main
from eagleeye_hf.runs.arguments import parse_config
from eagleeye_hf.runs.dimensions import trace_network
from eagleeye_hf.runtimes import profiling
from eagleeye_hf.strategies.files import read_strategy
from tests.helpers import digits_dataset, make_model
from tests.hub_server import TOKEN

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text()


DOCS = "\n".join(page.read_text() for page in sorted((ROOT / "docs").glob("*.md")))


def blocks(language: str, text: str = TEXT) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text()


def replaced(code: str, *pairs: tuple[str, str]) -> str:
    for old, new in pairs:
        assert old in code
        code = code.replace(old, new)
    return code


def test_the_strategy_of_the_docs_fits_its_network(tmp_path):
    (text,) = blocks("json", page("steps.md"))
    single, several = tmp_path / "one.json", tmp_path / "several.json"
    single.write_text(text)
    several.write_text(json.dumps({"strategies": {"half": json.loads(text)}}))
    model = timm.create_model("resnet20_cifar")
    graph = trace_network(model, strategy=str(single))
    found = read_strategy(graph, str(single))
    assert read_strategy(graph, f"{several}#half") == found
    changed = {group.name: width for group, width in zip(graph.groups, found.widths, strict=True)}
    assert (changed["layer1.0.conv1"], changed["layer2.0.conv1"]) == (12, 20)
    assert (found.removed_blocks, found.image_size) == (("layer3.2",), 28)


def test_the_python_code_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train, load = blocks("python", page("steps.md"))
    train = replaced(
        train,
        ('"mobilenetv1_100.ra4_e3600_r224_in1k", pretrained=True', '"resnet20_cifar"'),
        ('open_splits("ILSVRC/imagenet-1k", like=model)', "open_splits(DATASET, model, **COUNTS)"),
        ("candidates=200", "candidates=2"),
        ("FinetuneConfig(epochs=120)", "FinetuneConfig(epochs=1, batch_size=20)"),
        ("data.train, calibration", "data.train, MatchConfig(match_steps=2), calibration"),
        ("    SearchConfig,\n", "    SearchConfig,\n    MatchConfig,\n"),
    )
    names = {"DATASET": digits_dataset(100, 20), "COUNTS": {"calibration_images": 20, "holdout_images": 20}}
    exec(train, names)
    exec(load, names)
    assert names["model"].config.label_names[0] == "class 0"
    (shown,) = blocks("python")
    exec(replaced(shown, ("outputs/thin", "mobilenetv1-half")), names)


def test_the_example_of_a_network_of_ones_own_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("python", page("own-data.md"))
    code = replaced(
        code,
        ("model.load_state_dict(...)", 'model.pretrained_cfg = {"input_size": (3, 32, 32)}'),
        ('open_splits("path/to/photographs", like=model)', "open_splits(DATASET, like=model)"),
        (
            'latency=0.5, dimensions=("width", "depth", "size")',
            "candidates=2",
        ),
        (
            "FinetuneConfig(epochs=30, batch_size=64, lr=0.02)",
            "FinetuneConfig(epochs=0), match=MatchConfig(match_steps=1)",
        ),
        ("    NetworkConfig,\n", "    MatchConfig,\n    NetworkConfig,\n"),
    )
    names = {"DATASET": digits_dataset(100, 20)}
    exec(code, names)
    assert names["thin"](torch.zeros(1, 3, 32, 32)).shape == (1, 10)


def photographs(folder: Path, rows) -> None:
    for number, row in enumerate(rows):
        place = folder / f"kind {row['label']}" / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        row["image"].save(place)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> Path:
    """A folder with a network that timm saved, its weights, photographs, and what a short run made of them."""
    folder = tmp_path_factory.mktemp("checkpoints")
    network = make_model("resnet20_cifar")
    save_file(network.state_dict(), folder / "resnet20.safetensors")
    timm.models.save_for_hf(network, folder / "full", safe_serialization=True)
    photographs(folder / "photographs", digits_dataset(60)["train"])
    (folder / "flat").mkdir()
    for number, row in enumerate(digits_dataset(60)["train"]):
        row["image"].save(folder / "flat" / f"{number}.png")
    images = ["--dataset", str(folder / "photographs"), "--num-workers", "0"]
    ratios = ["--strategy", str(folder / "half.json"), "--epochs", "0", "--match-steps", "0", "--license", "mit"]
    ratios += ["--runtime", "torch"]
    (folder / "half.json").write_text(json.dumps({"ratios": [0.5] * len(trace_model(network).prunable)}))
    assert main(["compress", str(folder / "full"), *images, *ratios, "--output", str(folder / "half")]) == 0
    return folder


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of ONNX's tools
@pytest.mark.parametrize("name", ["how-it-works.md", "latency.md", "own-data.md", "publishing.md", "steps.md"])
def test_the_commands_of_the_docs_run(name, checkpoints, tmp_path, monkeypatch, hub, capsys):
    """On small networks and images, with few candidates and one epoch."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("openvino")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(profiling, "PROFILED", 8)
    monkeypatch.setattr(profiling, "MEASURED", 4)
    shutil.copy(checkpoints / "resnet20.safetensors", tmp_path)
    made = {"how-it-works.md": ["outputs/mbv1"], "latency.md": ["outputs/a", "outputs/b"]}
    for place in [*made.get(name, []), "mobilenetv1-half", "outputs/quarter"]:
        shutil.copytree(checkpoints / "half", tmp_path / place)
    shown = {
        "MODEL": str(checkpoints / "full"),
        "mobilenetv1_100.ra4_e3600_r224_in1k": str(checkpoints / "full"),
        "USER/REPO": "user/thin",
        "FOLDER": str(checkpoints / "flat"),
        "400": "2",
        "4.2ms": "0.75",
        "0.35": "0.65",
        "0.25": "0.6",
    } | dict.fromkeys(["DIR", "path/to/cifar10", "ILSVRC/imagenet-1k"], str(checkpoints / "photographs"))
    short = {
        "--epochs": "1",
        "--match-steps": "2",
        "--tolerance": "0.05",
        "--license": "mit",
        "--num-workers": "0",
        "--candidates": "2",
    }
    takes = {"compress": short, "search": dict(list(short.items())[4:]), "finetune": {"--batch-size": "8"}}
    commands = re.findall(r"^eagleeye .*?[^\\]$", "\n".join(blocks("bash", page(name))), re.DOTALL | re.MULTILINE)
    for number, command in enumerate(commands):
        _, verb, *words = shlex.split(command.replace("\\\n", " "), comments=True)
        words = [shown.get(word, word) for word in words]
        words += [word for flag in takes.get(verb, {}).items() if flag[0] not in words for word in flag]
        if verb in ("compress", "search") and "--output" not in words:
            words += ["--output", f"outputs/{number}"]
        assert main([verb, *words]) == 0, (command, capsys.readouterr().err)


@pytest.mark.filterwarnings("ignore")  # of ONNX's tools
def test_the_readmes_commands_run_one_after_the_other(tmp_path, monkeypatch, hub, capsys):
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(profiling, "PROFILED", 8)
    monkeypatch.setattr(profiling, "MEASURED", 4)
    save_file(make_model("resnet20_cifar").state_dict(), "weights.safetensors")
    photographs(tmp_path / "path/to/photographs", digits_dataset(60)["train"])
    (block,) = [text for text in blocks("bash") if "eagleeye compress" in text]
    commands = [shlex.split(line, comments=True) for line in block.splitlines() if line.startswith("eagleeye ")]
    few = ["--weights", "weights.safetensors", "--candidates", "2", "--epochs", "1", "--tolerance", "0.05"]
    few += ["--match-steps", "2"]
    few += ["--license", "mit", "--num-workers", "0", "--threads", "1"]
    for _, name, *words in commands:
        words = [word.replace("resnet50.a1_in1k", "resnet20_cifar").replace("USER/REPO", "user/thin") for word in words]
        code = main([name, *words, *(few if name == "compress" else [])])
        assert code == 0, (name, capsys.readouterr().err)
    assert [name for _, name, *_ in commands] == ["compress", "compress", "evaluate", "export", "push"]
    assert "## In 8-bit integers" in (tmp_path / "outputs" / "thin" / "README.md").read_text()
    assert "model.safetensors" in hub.repos["user/thin"].commits[hub.repos["user/thin"].refs["main"]]


def test_the_example_of_another_objective_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("python", page("objectives.md"))
    names = {"__name__": "example"}
    exec(code, names)
    assert "IoU: " in capsys.readouterr().out
    assert names["full_score"].reported > 0.5
    assert names["thin_score"].reported > 0.5
    network, images = names["again"], names["torch"].randn(1, 3, 64, 64)
    assert network(images).shape == (1, 1, 64, 64)


@pytest.mark.parametrize(
    "command",
    re.findall(r"^accelerate launch .*?[^\\]$", "\n".join(blocks("bash", TEXT + DOCS)), re.DOTALL | re.MULTILINE),
)
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
