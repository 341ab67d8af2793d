"""transformers on a pruned checkpoint: training, resuming, and loading where this package is not installed."""

import ast
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import timm
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from timm.utils import reparameterize_model
from transformers import AutoImageProcessor, AutoModelForImageClassification, Trainer, TrainingArguments, pipeline

import eagleeye_hf
from eagleeye_hf import from_pretrained, push_to_hub, save_pretrained
from tests.helpers import digits_dataset
from tests.hub_server import TOKEN
from tests.publishing.make import LABELS, prune, write_checkpoint

pytestmark = [
    pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning"),  # huggingface_hub's own
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("transformers") / "run"
    return folder, *write_checkpoint(folder)


def test_labels_and_processor_come_along(checkpoint):
    folder, model, _ = checkpoint
    config = AutoModelForImageClassification.from_pretrained(folder).config
    assert config.id2label == dict(enumerate(LABELS))
    assert config.label2id["class 3"] == 3
    picture = digits_dataset(2, 2)["train"][1]["image"]
    pixels = AutoImageProcessor.from_pretrained(folder)(picture)["pixel_values"]
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(from_pretrained(folder)))
    torch.testing.assert_close(pixels[0], transform(picture))
    answer = pipeline("image-classification", model=str(folder), device="cpu")(picture, top_k=1)
    with torch.inference_mode():
        assert answer[0]["label"] == LABELS[int(model(pixels).argmax())]


def trainer(folder, output, steps: int) -> Trainer:
    processor = AutoImageProcessor.from_pretrained(folder)
    rows = digits_dataset(40, 10)["train"]
    pixels = torch.cat([processor(row["image"])["pixel_values"] for row in rows])
    data = Dataset.from_dict({"pixel_values": pixels.tolist(), "labels": rows["label"]}).with_format("torch")
    arguments = TrainingArguments(
        output_dir=str(output),
        max_steps=steps,
        per_device_train_batch_size=10,
        save_steps=2,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        seed=0,
        dataloader_pin_memory=False,
    )
    return Trainer(model=AutoModelForImageClassification.from_pretrained(folder), args=arguments, train_dataset=data)


def test_the_trainer_trains_resumes_and_saves(checkpoint, tmp_path):
    """Four steps in one go, and two, a stop and two more, end at the same weights, which all loaders then read."""
    folder, _, images = checkpoint
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the data loader and the scheduler
        whole = trainer(folder, tmp_path / "whole", 4)
        whole.train()
        trainer(folder, tmp_path / "parts", 2).train()
        resumed = trainer(folder, tmp_path / "parts", 4)
        resumed.train(resume_from_checkpoint=True)
    before = load_file(folder / "model.safetensors")
    for name, tensor in whole.model.timm_model.state_dict().items():
        torch.testing.assert_close(resumed.model.timm_model.state_dict()[name], tensor)
        assert tensor.ndim < 2 or not torch.equal(tensor, before[name])
    resumed.save_model(str(tmp_path / "saved"))
    with torch.inference_mode():
        expected = resumed.model.eval()(images).logits
        by_timm = timm.create_model(f"local-dir:{tmp_path / 'saved'}", pretrained=True).eval()
        torch.testing.assert_close(by_timm(images), expected)
        torch.testing.assert_close(from_pretrained(tmp_path / "saved")(images), expected)
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["label_names"] == LABELS


PACKAGE = Path(eagleeye_hf.__file__).parent
CODE = {
    "modeling_eagleeye_pruned.py": PACKAGE / "publishing" / "remote" / "modeling_eagleeye_pruned.py",
    "resizing.py": PACKAGE / "channels" / "resizing.py",
    "cifar_resnet.py": PACKAGE / "networks" / "cifar_resnet.py",
}
"""What is published, and where it stands in the package."""


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("modeling_eagleeye_pruned.py", {"torch", "timm", "transformers", ".resizing", ".cifar_resnet"}),
        ("resizing.py", {"torch"}),
        ("cifar_resnet.py", {"torch", "timm"}),
    ],
)
def test_published_code_imports_nothing_of_this_package(name, allowed):
    found = set()
    for node in ast.walk(ast.parse(CODE[name].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add("." * node.level + node.module if node.level else node.module.split(".")[0])
    assert found - sys.stdlib_module_names == allowed


WITHOUT_PACKAGE = """
import sys
sys.modules["eagleeye_hf"] = None  # importing it fails
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification

folder, *repos = sys.argv[1:]
outputs = {}
for i, repo in enumerate(repos):
    images = load_file(f"{folder}/images.safetensors")[str(i)]
    try:
        AutoModelForImageClassification.from_pretrained(repo)
    except Exception as error:
        print("untrusted:", type(error).__name__)
    model = AutoModelForImageClassification.from_pretrained(repo, trust_remote_code=True).eval()
    outputs[f"{i} logits"] = model(images).logits.detach().contiguous()
    body = AutoModel.from_pretrained(repo, trust_remote_code=True).eval()
    outputs[f"{i} features"] = body(images).last_hidden_state.detach().contiguous()
    AutoImageProcessor.from_pretrained(repo)
save_file(outputs, f"{folder}/outputs.safetensors")
assert sys.modules["eagleeye_hf"] is None
"""


def test_remote_code_works_without_this_package(hub, tmp_path):
    """For a network of timm with its branches merged, for one that this package brings along, and from a folder."""
    networks, images = {}, {}
    for i, name in enumerate(("resnet20_cifar", "repvgg_a0")):
        folder = tmp_path / name
        write_checkpoint(folder)
        if name != "resnet20_cifar":
            card = (folder / "README.md").read_text()
            model, images[str(i)] = prune(name, num_classes=10)
            model = reparameterize_model(model)
            folder = save_pretrained(model, tmp_path / "other", label_names=LABELS, card=card)
        else:
            model, images[str(i)] = prune(name)
        networks[i] = model
        push_to_hub(folder, f"user/{name}", remote_code=True, token=TOKEN)
        files = hub.repos[f"user/{name}"].commits[hub.repos[f"user/{name}"].refs["main"]]
        assert {file: files[file] for file in files if file.endswith(".py")} == {
            file: path.read_bytes() for file, path in CODE.items()
        }
        assert "trust_remote_code=True" in files["README.md"].decode()
    (tmp_path / "cloned").mkdir()
    for file, content in files.items():
        (tmp_path / "cloned" / file).write_bytes(content)
    networks[2], images["2"] = networks[1], images["1"].clone()
    save_file(images, tmp_path / "images.safetensors")
    repos = ["user/resnet20_cifar", "user/repvgg_a0", str(tmp_path / "cloned")]
    command = [sys.executable, "-W", "error::UserWarning", "-c", WITHOUT_PACKAGE, str(tmp_path), *repos]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith("untrusted: ImportError")
    outputs = load_file(tmp_path / "outputs.safetensors")
    with torch.inference_mode():
        for i, model in networks.items():
            torch.testing.assert_close(outputs[f"{i} logits"], model(images[str(i)]), rtol=1e-3, atol=1e-4)
            features = model.forward_features(images[str(i)])
            torch.testing.assert_close(outputs[f"{i} features"], features, rtol=1e-3, atol=1e-4)


def test_with_the_package_its_remote_code_is_left_alone(hub, checkpoint):
    push_to_hub(checkpoint[0], "user/thin", remote_code=True, token=TOKEN)
    model = AutoModelForImageClassification.from_pretrained("user/thin").eval()
    assert type(model).__module__.startswith("transformers.")
    with torch.inference_mode():
        torch.testing.assert_close(model(checkpoint[2]).logits, checkpoint[1](checkpoint[2]))
        torch.testing.assert_close(from_pretrained("user/thin")(checkpoint[2]), checkpoint[1](checkpoint[2]))


def test_with_the_package_its_remote_code_builds_the_packages_networks(hub, checkpoint):
    """Trusted code comes beside the package without a word: timm would warn of names that are registered twice."""
    push_to_hub(checkpoint[0], "user/thin", remote_code=True, token=TOKEN)
    model = AutoModelForImageClassification.from_pretrained("user/thin", trust_remote_code=True).eval()
    assert type(model).__module__.startswith("transformers_modules.")
    assert type(model.timm_model).__module__ == "eagleeye_hf.networks.cifar_resnet"
    assert timm.models.model_entrypoint("eagleeye_pruned").__module__.startswith("eagleeye_hf.")
    with torch.inference_mode():
        torch.testing.assert_close(model(checkpoint[2]).logits, checkpoint[1](checkpoint[2]))


def test_without_the_option_no_code_is_published(hub, checkpoint):
    push_to_hub(checkpoint[0], "user/thin", token=TOKEN)
    files = hub.repos["user/thin"].commits[hub.repos["user/thin"].refs["main"]]
    assert not any(name.endswith(".py") for name in files)
    assert "auto_map" not in json.loads(files["config.json"])
