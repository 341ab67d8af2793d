"""`eagleeye evaluate` needs the split that it measures, and nothing else."""

import json

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from eagleeye_hf.data.measured import open_test
from eagleeye_hf.networks.config import InputConfig
from eagleeye_hf.networks.load import adjust_input
from tests.helpers import digits_dataset, run_command


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    file = tmp_path_factory.mktemp("weights") / "w.safetensors"
    save_file(timm.create_model("resnet20_cifar").state_dict(), file)
    return str(file)


def write(folder, num: int) -> None:
    """A folder per class."""
    for number, row in enumerate(digits_dataset(10, 30)["test"].select(range(num))):
        place = folder / f"kind {row['label']}" / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        row["image"].save(place)


def evaluate(capsys, weights, folder, *arguments):
    base = ("evaluate", "resnet20_cifar", "--weights", weights, "--num-workers", "0", "--dataset", str(folder))
    return run_command(capsys, *base, *arguments)


@pytest.mark.parametrize(
    ("layout", "split"),
    [
        ({"": 20}, "train"),
        ({"test": 20}, "test"),
        ({"validation": 20}, "validation"),
        ({"train": 30, "dev": 20}, "validation"),
        ({"train": 30, "eval": 20}, "test"),
        ({"train": 10, "val": 20, "test": 30}, "validation"),
    ],
)
def test_folders_of_every_layout(capsys, tmp_path, weights, layout, split):
    for name, num in layout.items():
        write(tmp_path / name, num)
    code, out, _ = evaluate(capsys, weights, tmp_path, "--json")
    assert code == 0
    found = json.loads(out)
    assert (found["num_images"], found["split"]) == (20, split)
    _, out, _ = evaluate(capsys, weights, tmp_path)
    assert f"resnet20_cifar on 20 images of {tmp_path.name}, split {split}\ntop-1 {found['top1']:.2%}" in out


def test_a_split_by_its_name(capsys, tmp_path, weights):
    for name, num in (("train", 10), ("test", 30)):
        write(tmp_path / name, num)
    code, out, _ = evaluate(capsys, weights, tmp_path, "--split", "train", "--json")
    assert code == 0
    assert (json.loads(out)["num_images"], json.loads(out)["split"]) == (10, "train")
    code, _, err = evaluate(capsys, weights, tmp_path, "--split", "tests")
    assert code == 2
    assert err.splitlines()[-1] == f"error: `split=tests` is no split of `dataset={tmp_path}`; it has train, test"


def test_a_gray_network_from_a_file_of_torch(capsys, tmp_path):
    write(tmp_path / "images", 20)
    model = timm.create_model("resnet20_cifar", in_chans=1)
    torch.save(
        {"state_dict": {f"module.{key}": value for key, value in model.state_dict().items()}}, tmp_path / "w.pth"
    )
    code, out, _ = evaluate(capsys, str(tmp_path / "w.pth"), tmp_path / "images", "--json")
    assert code == 0
    assert json.loads(out)["num_images"] == 20


def test_images_without_labels_beside_another_network(capsys, tmp_path, weights):
    """Agreement is what both networks decide; the teacher may take images of another size."""
    write(tmp_path / "labelled", 30)
    for number, file in enumerate(sorted((tmp_path / "labelled").rglob("*.png"))):
        (tmp_path / "images").mkdir(exist_ok=True)
        file.rename(tmp_path / "images" / f"{number}.png")
    code, _, err = evaluate(capsys, weights, tmp_path / "images")
    assert code == 2
    assert "compare with another network, `eagleeye evaluate --teacher`" in err
    other = tmp_path / "other.safetensors"
    save_file(timm.create_model("resnet20_cifar").state_dict(), other)
    same = ("--teacher", "resnet20_cifar", "--teacher-weights")
    _, out, _ = evaluate(capsys, weights, tmp_path / "images", *same, weights, "--json")
    assert json.loads(out)["agreement"] == 1
    model = timm.create_model("resnet20_cifar")
    data = open_test(str(tmp_path / "images"), model, teacher=model)
    assert data.images.shown is data.images.images, "decoded once for both"
    code, out, _ = evaluate(capsys, weights, tmp_path / "images", *same, str(other), "--image-size", "24", "--json")
    assert code == 0
    decisions = []
    for file, size in ((weights, 24), (other, 32)):
        model = timm.create_model("resnet20_cifar").eval()
        model.load_state_dict(load_file(file))
        data = open_test(str(tmp_path / "images"), adjust_input(model, InputConfig(image_size=size)), teacher=model)
        with torch.no_grad():
            decisions.append(torch.cat([model(pixels).argmax(1) for pixels, _ in data.images.batches()]))
    found = json.loads(out)
    assert found["agreement"] == pytest.approx((decisions[0] == decisions[1]).double().mean().item())
    assert (found["teacher"], found["num_images"]) == ("resnet20_cifar", 30)
    _, out, _ = evaluate(capsys, weights, tmp_path / "images", *same, str(other), "--image-size", "24")
    assert f"it decides as resnet20_cifar on {found['agreement']:.2%} of them" in out
    code, _, err = evaluate(capsys, weights, tmp_path / "images", "--teacher", "resnet18", "--teacher-weights", weights)
    assert code == 2
