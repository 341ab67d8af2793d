"""The two peers of `search_vs_peers.py`."""

from __future__ import annotations

import copy
import io
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmarks.cifar_tensors import batches, read_jpegs

NORMALIZE = transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CALIBRATION_BATCHES, BATCH = 100, 128


class Jpegs(Dataset):
    """Images decoded anew each time, as a folder of files would be."""

    def __init__(self, jpegs: list[bytes], labels: Tensor, transform: Any) -> None:
        self.jpegs, self.labels, self.transform = jpegs, labels, transform

    def __len__(self) -> int:
        return len(self.jpegs)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.open(io.BytesIO(self.jpegs[index])).convert("RGB")), int(self.labels[index])


def score_as_the_paper(model: nn.Module, calibration: DataLoader, holdout: DataLoader, num_batches: int) -> float:
    """100 batches in training mode without gradients (momentum form), then top-1."""
    model.train()
    with torch.no_grad():
        for number, (images, _) in enumerate(calibration):
            if number == num_batches:
                break
            model(images)
        model.eval()
        right = sum(int((model(images).argmax(1) == labels).sum()) for images, labels in holdout)
    return right / len(holdout.dataset)  # type: ignore[arg-type]


def paper_search(
    model: nn.Module, full_macs: float, macs: float, tolerance: float, minutes: float, data: Path, num_train: int
) -> tuple[nn.Module, dict[str, Any]]:
    """Draw ratios, deep copy, prune, count, reject or score; until the time is up."""
    started = time.perf_counter()
    jpegs, labels = read_jpegs(data, "train")
    augment = transforms.Compose(
        [transforms.RandomCrop(32, 4), transforms.RandomHorizontalFlip(), transforms.ToTensor(), NORMALIZE]
    )
    plain = transforms.Compose([transforms.ToTensor(), NORMALIZE])
    calibration = DataLoader(Jpegs(jpegs[:num_train], labels, augment), BATCH, shuffle=True, num_workers=2)
    holdout = DataLoader(Jpegs(jpegs[num_train:], labels[num_train:], plain), BATCH, num_workers=2)
    targets = [name for name, _ in model.named_modules() if name.endswith(".conv1")]
    random = np.random.default_rng(0)
    best, best_top1, scored, rejected = None, -1.0, 0, 0
    while time.perf_counter() - started < 60 * minutes or best is None:
        thin = prune_by_ratios(model, dict(zip(targets, random.uniform(0, 0.95, len(targets)), strict=True)))
        if abs(count_macs(thin, (1, 3, 32, 32)) / full_macs - macs) > tolerance:
            rejected += 1
            continue
        top1 = score_as_the_paper(thin, calibration, holdout, CALIBRATION_BATCHES)
        scored += 1
        if top1 > best_top1:
            best, best_top1 = thin, top1
        print(f"paper: {scored} scored, {rejected} rejected, best {best_top1:.4f}", flush=True)
    seconds = time.perf_counter() - started
    assert best is not None
    return best, {"candidates": scored, "rejected": rejected, "seconds": seconds, "holdout_top1": best_top1}


def prune_by_ratios(model: nn.Module, ratios: dict[str, float]) -> nn.Module:
    """A deep copy pruned by L1 norm with Torch-Pruning."""
    import torch_pruning as tp

    thin = copy.deepcopy(model)
    graph = tp.DependencyGraph().build_dependency(thin, example_inputs=torch.randn(1, 3, 32, 32))
    for name, ratio in ratios.items():
        layer = thin.get_submodule(name)
        norms = layer.weight.detach().abs().sum((1, 2, 3))
        number = min(int(len(norms) * ratio), len(norms) - 1)
        if number:
            removed = norms.argsort()[:number].tolist()
            graph.get_pruning_group(layer, tp.prune_conv_out_channels, idxs=removed).prune()
    return thin


def count_macs(model: nn.Module, size: tuple[int, ...]) -> float:
    """Of convolutions and linear layers, by one forward pass."""
    total = 0.0

    def add(layer: nn.Module, _: Any, output: Tensor) -> None:
        nonlocal total
        total += layer.weight.numel() * (output[0, 0].numel() if output.ndim == 4 else 1)  # type: ignore[operator]

    handles = [m.register_forward_hook(add) for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    with torch.no_grad():
        model.eval()(torch.randn(size))
    for handle in handles:
        handle.remove()
    return total


def fastnas_search(
    model: nn.Module, macs: float, minutes: float, pool: tuple[Tensor, Tensor]
) -> tuple[nn.Module, dict[str, Any]]:
    """ModelOpt's FastNAS: the loss of accuracy of every width of every layer alone, then a threshold for all.

    It has no limit of time; its documentation advises to score on fewer images. The divisor is 4, and the images as
    many as let all its scores fit into the time given, up to 2,048 (and 1,024 for BatchNorm).
    """
    import modelopt.torch.prune as mtp

    started = time.perf_counter()
    widths = [m.weight.shape[0] for name, m in model.named_modules() if name.endswith(".conv1")]
    divisor = 4
    num_scores = sum(width // divisor for width in widths)
    probe = batches(pool[0][:256], pool[1][:256])
    with torch.no_grad():
        model(probe[0][0])
        before = time.perf_counter()
        for images, _ in probe:
            model.eval()(images)
        rate = 256 / (time.perf_counter() - before)
    affordable = int(rate * 60 * minutes / num_scores) // 3 // 128 * 128
    num_calibration = max(128, min(1024, affordable))
    calibration = batches(pool[0][:num_calibration], pool[1][:num_calibration])
    holdout = batches(pool[0][1024 : 1024 + 2 * num_calibration], pool[1][1024 : 1024 + 2 * num_calibration])
    scored = 0

    def score(candidate: nn.Module) -> float:
        nonlocal scored
        scored += 1
        candidate.eval()
        with torch.no_grad():
            right = sum(int((candidate(images).argmax(1) == labels).sum()) for images, labels in holdout)
        return right / (2 * num_calibration)

    conv = {"channels_ratio": tuple(0.05 * i for i in range(1, 21)), "kernel_size": (), "channel_divisor": divisor}
    rules = {
        "nn.Conv2d": {"*": conv},
        "nn.BatchNorm2d": {"*": {"feature_divisor": divisor}},
        "nn.Linear": {"*": {"feature_divisor": divisor}},
    }
    pruned, _ = mtp.prune(
        model,
        mode=[("fastnas", rules)],
        constraints={"flops": f"{100 * macs:g}%"},
        dummy_input=torch.randn(1, 3, 32, 32),
        config={
            "data_loader": calibration,
            "score_func": score,
            "collect_func": lambda batch: batch[0],
            "max_iter_data_loader": len(calibration),
            "checkpoint": None,
        },
    )
    seconds = time.perf_counter() - started
    plain = _plain_copy(model, pruned)
    return plain, {"candidates": scored, "seconds": seconds, "holdout_top1": score(pruned), "divisor": divisor}


def _plain_copy(model: nn.Module, pruned: nn.Module) -> nn.Module:
    """The pruned network without ModelOpt's bookkeeping, so that it can be saved and read anywhere."""
    import timm

    name = "resnet56_cifar" if any(key.startswith("layer1.8") for key in pruned.state_dict()) else "resnet20_cifar"
    plain = timm.create_model(name)
    state = pruned.state_dict()
    for key, module in plain.named_modules():
        if isinstance(module, nn.Conv2d):
            module.out_channels, module.in_channels = state[f"{key}.weight"].shape[:2]
            module.weight = nn.Parameter(state[f"{key}.weight"].clone())
        elif isinstance(module, nn.BatchNorm2d):
            module.num_features = len(state[f"{key}.weight"])
            module.weight, module.bias = (nn.Parameter(state[f"{key}.{n}"].clone()) for n in ("weight", "bias"))
            module.running_mean, module.running_var = (
                state[f"{key}.{n}"].clone() for n in ("running_mean", "running_var")
            )
    plain.load_state_dict(state)
    return plain.eval()
