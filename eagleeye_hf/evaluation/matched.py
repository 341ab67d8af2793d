"""A candidate after a few steps of training without labels: what training repairs easily does not count against it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import cycle, islice

import torch
from torch import Tensor, nn

from eagleeye_hf.channels.cut import clear_caches
from eagleeye_hf.evaluation.batchnorm import batch_norms, unsynchronised
from eagleeye_hf.evaluation.layers import LayerOutputs, matching_loss
from eagleeye_hf.networks.depthwise import Float32Depthwise
from eagleeye_hf.networks.running import device_of, in_float32, run_model
from eagleeye_hf.pruning.config import MatchConfig

LIKE = MatchConfig()
"""The highest learning rate is that of `match_teacher` for its images a step; in proportion for others."""
PER_PASS = 16
"""An image is seen at most once in so many steps; where there are few images there are fewer steps."""
MAX_NORM = 1.0
"""Of the gradient."""


def match_briefly(
    thin: nn.Module,
    full: nn.Module,
    kept: Mapping[str, Tensor | None],
    images: Sequence[Tensor],
    seen: Sequence[Tensor],
    steps: int,
    parts: int,
    autocast: Callable[[], AbstractContextManager[object]],
    mask: Callable[[], object] = lambda: None,
) -> nn.Module:
    """Train a pruned network, in place, towards what the full one gives, for a few steps (see `match_teacher`).

    Nothing in it is random: dropout is off, images come in their order.

    Args:
        thin: its statistics recomputed.
        kept: the layers to match, and their channels in the full network, as in `matching_loss`.
        images: batches at the size that the full network takes.
        seen: the same images at the size that the pruned one takes.
        steps: each of a part of a batch, from the first on and over again; fewer where images are few.
        parts: of a batch.
        autocast: makes a context of the precision of passes.
        mask: called once there are gradients.
    """
    device = device_of(thin)
    teacher = copy.deepcopy(in_float32(full)).eval()  # its hooks are this candidate's
    ours, theirs = LayerOutputs(thin, kept), LayerOutputs(teacher, kept)
    pairs = [
        (part, part if smaller is batch else small)
        for batch, smaller in zip(images, seen, strict=True)
        for part, small in zip(batch.chunk(parts), smaller.chunk(parts), strict=True)
        if len(part) > 1
    ]
    optimizer = torch.optim.SGD(thin.parameters(), lr=LIKE.match_lr, momentum=0.9, nesterov=True)
    thin.eval()
    layers = batch_norms(thin)
    for layer in layers:
        layer.training = True  # not `train()`: some layers hold an activation or dropout
    steps = min(steps, len(pairs) * math.ceil(steps / PER_PASS))
    try:
        for step, pair in enumerate(islice(cycle(pairs), steps)):
            part = pair[0].to(device)
            small = part if pair[1] is pair[0] else pair[1].to(device)
            rate = LIKE.match_lr * len(part) / LIKE.match_batch_size * (1 + math.cos(math.pi * step / steps)) / 2
            for group in optimizer.param_groups:
                group["lr"] = rate
            clear_caches(thin)  # of the weights before
            with torch.no_grad(), autocast():
                wanted = run_model(teacher, part)
            with autocast(), Float32Depthwise(), unsynchronised(layers):
                outputs = run_model(thin, small)
                loss = matching_loss(ours.taken, theirs.taken, kept, outputs, wanted)
            optimizer.zero_grad()
            loss.backward()
            mask()
            nn.utils.clip_grad_norm_(thin.parameters(), MAX_NORM)
            optimizer.step()
    finally:
        ours.remove()
        thin.eval()
    return thin
