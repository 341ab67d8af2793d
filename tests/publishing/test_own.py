"""Networks that timm does not know: torchvision's, and one's own."""

import json

import pytest
import timm
import torch
import torchvision
from torch import nn

from eagleeye_hf import (
    EagleEyeError,
    FinetuneConfig,
    MatchConfig,
    NetworkConfig,
    RunConfig,
    SearchConfig,
    compress_model,
    from_pretrained,
    open_splits,
    push_to_hub,
    save_pretrained,
    slice_model,
    trace_model,
)
from eagleeye_hf.runs.config import PublishConfig
from eagleeye_hf.runtimes.config import LatencyConfig
from tests.helpers import digits_dataset, random_keep, randomise
from tests.hub_server import TOKEN

SIZE = (3, 64, 64)


def build_resnet() -> nn.Module:
    return torchvision.models.resnet18(num_classes=10)


class Small(nn.Module):
    """Somebody's own network; it keeps a width in its Python."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.body = nn.Sequential(
            nn.Conv2d(width, 2 * width, 3, 2, 1, bias=False), nn.BatchNorm2d(2 * width), nn.ReLU()
        )
        self.width = 2 * width
        self.head = nn.Linear(2 * width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(self.stem(x)).mean((2, 3)).reshape(-1, self.width))


def thin_of(builder) -> nn.Module:
    model = randomise(builder()).eval()
    graph = trace_model(model, SIZE)
    return slice_model(model, graph, random_keep(graph, 0)).eval()


@pytest.mark.parametrize("builder", [build_resnet, Small])
def test_a_network_of_ones_own_comes_back_with_its_builder(builder, tmp_path):
    thin, images = thin_of(builder), torch.randn(2, *SIZE)
    save_pretrained(thin, tmp_path / "thin", builder=builder, input_size=SIZE)
    loaded = from_pretrained(tmp_path / "thin", builder=builder)
    torch.testing.assert_close(loaded(images), thin(images), rtol=0, atol=0)
    assert sum(p.numel() for p in loaded.parameters()) < sum(p.numel() for p in builder().parameters())
    assert loaded.pretrained_cfg["input_size"] == list(SIZE)


def test_nothing_is_built_that_the_caller_did_not_give(tmp_path, hub):
    save_pretrained(thin_of(build_resnet), tmp_path / "thin", builder=build_resnet, input_size=SIZE)
    told = r"which `tests.publishing.test_own.build_resnet` built: load it with `eagleeye_hf.from_pretrained\(FOLDER, b"
    with pytest.raises(EagleEyeError, match=told):
        from_pretrained(tmp_path / "thin")
    with pytest.raises(EagleEyeError, match=told):
        timm.create_model(f"local-dir:{tmp_path / 'thin'}", pretrained=True)
    with pytest.raises(EagleEyeError, match=told):
        push_to_hub(tmp_path / "thin", "user/thin")


@pytest.mark.parametrize(
    ("builder", "message"),
    [
        (Small, "`builder` makes another network than the checkpoint is of"),
        (lambda: 3, "`builder` returns the full network as it was before pruning; got int"),
        (lambda: 1 / 0, r"`builder` fails \(ZeroDivisionError"),
        (lambda: torchvision.models.resnet34(num_classes=10), "do not fit|tensors|lacks|misses"),
    ],
)
def test_another_builder_is_refused(builder, message, tmp_path):
    save_pretrained(thin_of(build_resnet), tmp_path / "thin", builder=build_resnet, input_size=SIZE)
    with pytest.raises(EagleEyeError, match=message):
        from_pretrained(tmp_path / "thin", builder=builder)
    with pytest.raises(EagleEyeError, match=r"`builder`"):
        save_pretrained(thin_of(build_resnet), tmp_path / "other", builder=builder, input_size=SIZE)
    assert not (tmp_path / "other").exists()


def test_networks_of_timm_need_no_builder(tmp_path):
    save_pretrained(timm.create_model("resnet20_cifar"), tmp_path / "thin")
    with pytest.raises(EagleEyeError, match=r"`builder`: .* is of timm's resnet20_cifar, which needs none"):
        from_pretrained(tmp_path / "thin", builder=build_resnet)


def test_a_config_of_strangers_may_name_a_builder_and_no_more(tmp_path):
    save_pretrained(thin_of(Small), tmp_path / "thin", builder=Small, input_size=SIZE)
    file = tmp_path / "thin" / "config.json"
    config = json.loads(file.read_text())
    for arguments in ({"builder": 3}, {"builder": "a", "base": "resnet18"}, {"builder": "a" * 300}):
        file.write_text(json.dumps(config | {"model_args": {"sizes": {}} | arguments}))
        with pytest.raises(EagleEyeError, match=r"can.t be in the config.json of a checkpoint"):
            from_pretrained(tmp_path / "thin", builder=Small)


@pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")  # huggingface_hub's own
def test_the_whole_job_on_a_network_of_ones_own(tmp_path, hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    torch.manual_seed(0)
    model = Small()
    model.pretrained_cfg = {"input_size": (3, 32, 32)}
    config = RunConfig(
        network=NetworkConfig(model="small"),
        search=SearchConfig(candidates=4),
        match=MatchConfig(match_steps=2),
        finetune=FinetuneConfig(epochs=1, batch_size=32),
        measuring=LatencyConfig(runtime="torch"),
        output=str(tmp_path / "run"),
        publishing=PublishConfig(push_to="user/own", license="mit"),
    )
    data = open_splits(digits_dataset(), model, calibration_images=20, holdout_images=20)
    result = compress_model(model, data, config, builder=Small)
    loaded = from_pretrained(result.folder, builder=Small)
    assert loaded(torch.randn(1, 3, 32, 32)).shape == (1, 10)
    card = (result.folder / "README.md").read_text()
    assert "model.safetensors" in hub.repos["user/own"].commits[hub.repos["user/own"].refs["main"]]
    with pytest.raises(EagleEyeError, match="of a network of your own"):
        push_to_hub(result.folder, "user/other")
    assert "builder=...)" in card
    assert "create_model" not in card
