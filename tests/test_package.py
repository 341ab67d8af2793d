"""The wheel, installed beside its dependencies and away from this checkout, does the whole job."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from safetensors.torch import save_file

from tests.helpers import digits_dataset, make_model

ROOT = Path(__file__).resolve().parents[1]


def build(folder: Path, **environment: str) -> Path:
    pytest.importorskip("hatchling")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", str(ROOT)]
    done = subprocess.run(
        [*command, "--wheel-dir", str(folder)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    return build(tmp_path_factory.mktemp("wheel"))


def described(wheel: Path) -> str:
    return zipfile.ZipFile(wheel).read("eagleeye_hf-0.1.0.dist-info/METADATA").decode()


def test_a_release_has_addresses_and_pictures_that_show_on_a_registry(wheel, tmp_path):
    assert "Project-URL: Paper, https://arxiv.org/" in described(wheel)
    text = described(build(tmp_path, PROJECT_URL="https://example.org/team/eagleeye_hf/"))
    for name in ("Source", "Documentation", "Changes", "Issues", "Paper"):
        assert f"Project-URL: {name}, https://" in text
    links = re.findall(r"(!?)\[[^\]]*\]\(([^)]+)\)", text)
    assert len(links) > 10
    assert all(link.startswith(("https://", "#")) for _, link in links)
    pictures = [link for picture, link in links if picture]
    start = "https://example.org/team/eagleeye_hf/raw/main/"
    assert pictures
    for picture in pictures:
        assert picture.startswith(start)
        assert (ROOT / picture.removeprefix(start)).is_file()


def test_the_wheel_has_all_and_only_the_package(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"eagleeye_hf", "eagleeye_hf-0.1.0.dist-info"}
    packaged = {name for name in names if name.startswith("eagleeye_hf/")}
    files = {str(path.relative_to(ROOT)) for path in (ROOT / "eagleeye_hf").rglob("*") if path.is_file()}
    assert packaged == {name for name in files if "__pycache__" not in name}
    assert "eagleeye_hf/py.typed" in packaged
    assert "eagleeye_hf/publishing/card_template.md" in packaged


def test_the_installed_command_does_the_whole_job(wheel, tmp_path):
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    environment = os.environ | {"PYTHONPATH": str(site)}

    def run(*command: str) -> str:
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    assert run(sys.executable, "-c", "import eagleeye_hf; print(eagleeye_hf.__file__)").startswith(str(site))
    assert run(sys.executable, str(site / "bin" / "eagleeye"), "--version") == "eagleeye_hf 0.1.0\n"
    save_file(make_model("resnet20_cifar", num_classes=10).state_dict(), tmp_path / "weights.safetensors")
    for number, row in enumerate(digits_dataset(60)["train"]):
        place = tmp_path / "photographs" / f"kind {row['label']}" / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        row["image"].save(place)
    flags = ["--weights", "weights.safetensors", "--dataset", "photographs", "--candidates", "2", "--epochs", "1"]
    flags += ["--match-steps", "2"]
    flags += ["--runtime", "torch", "--num-workers", "0", "--output", "thin", "--license", "mit"]
    told = run(sys.executable, "-m", "eagleeye_hf", "compress", "resnet20_cifar", *flags)
    assert "saved in thin" in told
    assert (tmp_path / "thin" / "config.json").exists()


def test_what_stands_beside_the_package_can_be_read():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert citation["references"][0]["authors"][0]["family-names"] == "Li"
    forms = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
    assert len(forms) == 2
    for form in forms:
        assert {"name", "description", "body"} <= set(yaml.safe_load(form.read_text()))
