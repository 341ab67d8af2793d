"""The CIFAR ResNets (He et al. 2015, section 4.2): three stages and parameter-free, zero-padded shortcuts.

Nothing of this package is imported, since the code that a checkpoint may bring along has a copy of this file.
"""

from __future__ import annotations

from typing import Any

import timm
import torch.nn.functional as F
from timm.models import build_model_with_cfg, register_model
from torch import Tensor, nn


class PaddedShortcut(nn.Module):
    """Option A: every second pixel, and zero channels on both sides of the old ones."""

    def __init__(self, stride: int, pad_front: int, pad_back: int) -> None:
        super().__init__()
        self.stride = stride
        self.pad_front = pad_front
        self.pad_back = pad_back

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.pad_front, self.pad_back))


class CifarBlock(nn.Module):
    """Two 3 x 3 convolutions around a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or in_channels != out_channels:
            pad = out_channels - in_channels
            self.shortcut = PaddedShortcut(stride, pad // 2, pad - pad // 2)
        self.act2 = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act1(self.bn1(self.conv1(x)))
        return self.act2(self.bn2(self.conv2(y)) + self.shortcut(x))


class CifarResNet(nn.Module):
    """ResNet-(6n + 2) for 32 px images: a 3 x 3 stem, three stages of n blocks, average pooling, a linear layer."""

    def __init__(
        self,
        depth: int = 20,
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = 64
        self.global_pool = global_pool
        self.drop_rate = drop_rate
        self.conv1 = nn.Conv2d(in_chans, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.act1 = nn.ReLU(inplace=True)
        num_blocks, channels = (depth - 2) // 6, 16
        self.feature_info = []
        for stage, width in enumerate((16, 32, 64)):
            blocks = []
            for block in range(num_blocks):
                blocks.append(CifarBlock(channels, width, 2 if stage and not block else 1))
                channels = width
            name = f"layer{stage + 1}"
            self.add_module(name, nn.Sequential(*blocks))
            self.feature_info.append({"num_chs": width, "reduction": 2**stage, "module": name})
        self.linear = nn.Linear(64, num_classes) if num_classes else nn.Identity()
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight)

    def get_classifier(self) -> nn.Module:
        return self.linear

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        self.num_classes = num_classes
        self.global_pool = self.global_pool if global_pool is None else global_pool
        self.linear = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def forward_features(self, x: Tensor) -> Tensor:
        x = self.act1(self.bn1(self.conv1(x)))
        for name in ("layer1", "layer2", "layer3"):
            x = self.get_submodule(name)(x)
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        if self.global_pool:
            x = x.mean((2, 3))
        x = F.dropout(x, self.drop_rate, self.training)
        return x if pre_logits else self.linear(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


def _config(**kwargs: Any) -> dict[str, Any]:
    return {
        "num_classes": 10,
        "input_size": (3, 32, 32),
        "pool_size": None,
        "crop_pct": 1.0,
        "interpolation": "bilinear",
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "first_conv": "conv1",
        "classifier": "linear",
    } | kwargs


default_cfgs = {"resnet20_cifar": _config(), "resnet56_cifar": _config()}


def _create(variant: str, pretrained: bool, **kwargs: Any) -> CifarResNet:
    return build_model_with_cfg(CifarResNet, variant, pretrained, **kwargs)


def resnet20_cifar(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """ResNet-20 for 32 px images: 40.6 M MACs, 0.27 M parameters."""
    return _create("resnet20_cifar", pretrained, depth=20, **kwargs)


def resnet56_cifar(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """ResNet-56 for 32 px images: 125.5 M MACs, 0.85 M parameters."""
    return _create("resnet56_cifar", pretrained, depth=56, **kwargs)


for entrypoint in (resnet20_cifar, resnet56_cifar):
    if not timm.is_model(entrypoint.__name__):  # the copy beside a checkpoint may have come first
        register_model(entrypoint)
