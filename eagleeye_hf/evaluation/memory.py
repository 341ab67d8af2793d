"""How much memory scoring takes, and how it is bounded: by the images of a pass, and by the threads that score."""

from __future__ import annotations

import math
import os

import psutil
import torch
from torch import Tensor, nn

from eagleeye_hf.evaluation.batchnorm import batch_norms
from eagleeye_hf.networks.running import device_of, dtype_of, evaluation_mode, run_model

ALIVE = 3
"""Activations of the largest size that are there at once: a layer's input, its output, and what BatchNorm makes of it.
"""
KEPT = 5
"""Activations per layer that training keeps: for the gradient a layer's output, what BatchNorm and what the function
after it make of it, and of the teacher its output and a part of it."""
BOUND = 400e6
"""Bytes of activations in a scoring thread on a CPU, as far as batches of `SMALLEST` allow."""
LARGEST, SMALLEST = 128, 32
"""Images of a batch; fewer would tell their statistics worse."""
PART = 0.5
"""Of the memory that is left, which scoring threads may take; of a GPU's, what matching may."""
PARTS = 2
"""Steps of matching that a batch of calibration images makes, where a GPU has memory enough."""
SMALLEST_STEP = 8
"""Images of such a step; fewer would tell their statistics badly."""


def activation_bytes(model: nn.Module, input_size: tuple[int, int, int]) -> int:
    """Of one image in float32, when they take most; found by a pass on one image."""
    return ALIVE * 4 * max(_activation_sizes(model, input_size), default=0)


def training_bytes(model: nn.Module, input_size: tuple[int, int, int]) -> int:
    """Of one image in float32, while a network is trained beside a teacher."""
    return KEPT * 4 * sum(_activation_sizes(model, input_size))


def _activation_sizes(model: nn.Module, input_size: tuple[int, int, int]) -> list[int]:
    """Numbers in the input of each BatchNorm layer for one image, found by a pass."""
    sizes: list[int] = []

    def note(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        sizes.append(inputs[0].numel())

    handles = [layer.register_forward_pre_hook(note) for layer in batch_norms(model)]
    try:
        with evaluation_mode(model), torch.inference_mode():
            run_model(model, torch.zeros(1, *input_size, device=device_of(model), dtype=dtype_of(model)))
    finally:
        for handle in handles:
            handle.remove()
    return sizes


def scoring_batch(model: nn.Module, input_size: tuple[int, int, int]) -> int:
    """Images of a batch: on a CPU as many, by powers of two, as keep a thread's memory bounded. Scores depend on it, so
    it depends on the network and its image size alone."""
    batch = LARGEST
    if device_of(model).type == "cpu":
        each = activation_bytes(model, input_size)
        while batch > SMALLEST and batch * each > BOUND:
            batch //= 2
    return batch


def matching_parts(image_bytes: int, batch: int, taken: int, device: torch.device) -> int | None:
    """How many steps a batch of images makes where candidates are matched; None: a GPU has no memory for that. It
    depends on the GPU and the images alone, not on what else is in its memory, so that a search can go on elsewhere.

    Args:
        image_bytes: `training_bytes`.
        taken: bytes of the images that score.
    """
    if device.type != "cuda":
        return PARTS
    left = torch.cuda.get_device_properties(device).total_memory - taken
    fitting = int(PART * left / image_bytes)
    return None if fitting < min(SMALLEST_STEP, batch) else max(PARTS, math.ceil(batch / fitting))


def affordable_threads(thread_bytes: int) -> int:
    """How many threads of so many bytes fit into this process's part of the memory that is left; at least one."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, int(psutil.virtual_memory().available * PART / processes / thread_bytes))
