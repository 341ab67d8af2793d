"""Top-1, top-5 and cross-entropy of a classifier."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn

from eagleeye_hf.errors import EagleEyeError
from eagleeye_hf.networks.running import AnyBatch, device_of, evaluation_mode, images_of, labels_of, run_model


@dataclass(frozen=True, kw_only=True)
class Metrics:
    top1: float
    """Share of images whose label scores highest, in [0, 1]."""
    top5: float
    """Share of images whose label is among the five highest (among all, where there are fewer classes)."""
    loss: float
    """Mean cross-entropy, in nats."""
    num_images: int

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


def evaluate_model(model: nn.Module, batches: Iterable[AnyBatch], accelerator: Accelerator | None = None) -> Metrics:
    """Score a classifier in eval mode; its modes are restored.

    Args:
        batches: images of shape `(N, C, H, W)` and labels of shape `(N,)`, as a pair or as transformers has them.
        accelerator: where given, `batches` is this process's part, and the metrics are those of all processes' images.
    Raises:
        EagleEyeError: there are no images, or a label is not among the model's outputs.
    """
    device = device_of(model)
    where = device if device.type == "cuda" else torch.device("cpu")  # nothing waits for a GPU until the end
    sums, count = torch.zeros(3, dtype=torch.float64, device=where), 0
    with evaluation_mode(model), torch.inference_mode():
        for batch in batches:
            labels = labels_of(batch).cpu()
            logits = run_model(model, images_of(batch)).float().to(where)
            if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < logits.shape[1]:
                raise EagleEyeError(
                    f"a label is {int(labels.max())}, but `model` has {logits.shape[1]} outputs; "
                    "fine-tune it with this dataset's number of classes first"
                )
            there = labels.to(where)
            best = logits.topk(min(5, logits.shape[1]), dim=1).indices == there[:, None]
            loss = F.cross_entropy(logits, there, reduction="sum")
            sums += torch.stack([value.double() for value in (best[:, 0].sum(), best.any(1).sum(), loss)])
            count += len(labels)
    sums = torch.cat([sums, sums.new_tensor([count])])
    if accelerator is not None and accelerator.num_processes > 1:
        sums = accelerator.reduce(sums.to(accelerator.device), reduction="sum").cpu()
    top1, top5, loss, num_images = sums.tolist()
    if not num_images:
        raise EagleEyeError("`batches` holds no images")
    return Metrics(top1=top1 / num_images, top5=top5 / num_images, loss=loss / num_images, num_images=int(num_images))
