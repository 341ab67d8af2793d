"""PyTorch, as it is."""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from eagleeye_hf.networks.running import device_of, synchronize


class TorchRuntime:
    """Runs the network on the device where it lives."""

    name = "torch"

    def load(self, model: nn.Module, images: Tensor, folder: Path) -> Callable[[], object]:
        device = images.device

        def run() -> None:
            with torch.inference_mode():
                model(images)
                synchronize(device)

        synchronize(device)
        return run

    def describe(self, model: nn.Module) -> tuple[str, int]:
        device = device_of(model)
        if device.type == "cuda":
            return torch.cuda.get_device_name(device), 0
        return f"{device.type.upper()} ({platform.machine()})", torch.get_num_threads()
