"""Importing the package is quick, and timm knows its architectures whichever is imported first."""

import subprocess
import sys

import pytest

import eagleeye_hf

NAMES = "['eagleeye_pruned', 'resnet20_cifar', 'resnet56_cifar']"


def run(code: str) -> str:
    command = [sys.executable, "-W", "error::UserWarning", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize(
    "imports",
    [
        "import eagleeye_hf, timm",
        "import timm, eagleeye_hf",
        "import eagleeye_hf; from timm.models import create_model; import timm",
        "import eagleeye_hf; eagleeye_hf.trace_model; import timm",
        "import eagleeye_hf, importlib.util; importlib.util.find_spec('timm'); import timm",
    ],
)
def test_timm_knows_the_architectures(imports):
    told = run(f"{imports}\nprint([name for name in {NAMES} if timm.is_model(name)])")
    assert told == NAMES + "\n"


def test_importing_the_package_imports_nothing_slow():
    slow = {"torch", "timm", "transformers", "datasets", "accelerate", "numpy"}
    assert run(f"import sys, eagleeye_hf; dir(eagleeye_hf); print(sorted({slow} & set(sys.modules)))") == "[]\n"


def test_every_public_name_is_there_and_no_other():
    assert set(eagleeye_hf.__all__) <= set(dir(eagleeye_hf))
    for name in eagleeye_hf.__all__:
        assert getattr(eagleeye_hf, name).__doc__
    with pytest.raises(AttributeError, match="has no attribute 'widths_from_ratios'"):
        _ = eagleeye_hf.widths_from_ratios
