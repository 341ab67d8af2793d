import json
import subprocess
import sys

import pytest
import timm

import eagleeye_hf
from eagleeye_hf import count_cost, save_pretrained, slice_model, trace_model
from eagleeye_hf.cli import COMMANDS
from tests.helpers import make_model, random_keep
from tests.helpers import run_command as run


def test_inspect_tells_what_goes_and_what_stays(capsys):
    code, out, _ = run(capsys, "inspect", "eca_resnet33ts", "--image-size", "64")
    assert code == 0
    assert "stem.conv1.conv " in out
    assert "a convolution slides along them" in out
    assert "19.6" in out.split("M parameters")[0]


def test_inspect_as_json_agrees_with_the_models_own_numbers(capsys):
    _, out, _ = run(capsys, "inspect", "mobilenetv1_100", "--json", "--image-size", "96")
    data = json.loads(out)
    model = timm.create_model("mobilenetv1_100")
    assert data["input_size"] == [3, 96, 96]
    assert data["full"]["params"] == sum(p.numel() for p in model.parameters())
    last = data["groups"][-2]
    assert last["name"] == "blocks.4.1.conv_pw"
    # its filters, its BatchNorm, its columns in the classifier: all but one channel
    assert last["params"] == 1023 * (1024 + 2 + 1000)
    assert last["macs"] == 1023 * (1024 * 9 + 1000)


def test_inspect_shows_a_pruned_checkpoint_beside_its_base(capsys, tmp_path):
    pytest.importorskip("matplotlib")
    model = make_model("resnet20_cifar")
    graph = trace_model(model)
    keep = random_keep(graph, 0)
    widths = {g.name: len(keep.get(g.name, range(g.channels))) for g in graph.groups}
    save_pretrained(slice_model(model, graph, keep), tmp_path / "run", provenance={"widths": widths})
    code, out, _ = run(capsys, "inspect", str(tmp_path / "run"), "--json", "--plot", str(tmp_path / "groups.png"))
    assert code == 0
    data = json.loads(out)
    assert {g["name"]: g["width"] for g in data["groups"]} == widths
    assert data["kept"]["macs"] == count_cost(graph, list(widths.values())).macs
    assert (tmp_path / "groups.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspekt"], "there is no command 'inspekt'"),
        (["inspect", "resnet180"], "is no model of timm; did you mean resnet18"),
        (["inspect", "resnet18", "--image-size", "-1"], "`image_size` is an integer, at least 1 or left out; got -1"),
        (["export", "resnet18", "--opset", "99"], "`opset` is an integer, in [18, 23]; got 99"),
        (["evaluate", "resnet18", "--batch-size", "0"], "`batch_size` is an integer, at least 1; got 0"),
        (["inspect"], "`model` must be given"),
        (["inspect", "resnet18", "--image_size", "64"], "--image_size; did you mean --image-size?"),
        (["inspect", "resnet18", "--strategy", "nowhere.json"], "`strategy=nowhere.json` can't be read"),
        (["inspect", "resnet18", "--depth", "3"], "unknown arguments: --depth 3"),
        (["inspect", "resnet18", "--plot", "/nowhere/at/all.png"], "`plot=/nowhere/at/all.png` can't be written"),
    ],
)
def test_bad_input_is_one_clear_line(capsys, arguments, message):
    code, _, err = run(capsys, *arguments)
    assert code == 2
    assert message in err
    assert "Traceback" not in err


def test_help_lists_the_commands(capsys):
    code, out, err = run(capsys, "--help")
    assert (code, err) == (0, "")
    assert "inspect" in out
    code, out, _ = run(capsys, "--version")
    assert (code, out) == (0, f"eagleeye_hf {eagleeye_hf.__version__}\n")


@pytest.mark.parametrize("arguments", [["--help"], *([name, "--help"] for name in COMMANDS)], ids=" ".join)
def test_help_is_quick_and_on_standard_output(arguments):
    """What takes seconds to import is not imported."""
    code = "import sys; from eagleeye_hf.cli import main\ntry: main(sys.argv[1:])\nfinally: "
    code += (
        "print(sorted({'torch', 'timm', 'transformers', 'datasets', 'accelerate'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stderr == "[]\n"
    assert "--help" in done.stdout


def test_a_profile_is_json_too(capsys):
    code, out, _ = run(capsys, "inspect", "resnet20_cifar", "--profile", "--runtime", "torch", "--json")
    assert code == 0
    layers = [operator["weight"] for operator in json.loads(out)["profile"] if operator["weight"]]
    assert len(layers) == 20
    code, out, _ = run(capsys, "inspect", "resnet20_cifar", "--profile", "--runtime", "torch")
    assert code == 0
    assert "ms in PyTorch on CPU" in out
