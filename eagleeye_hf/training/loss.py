"""What is minimised: cross-entropy with the labels and, beside it, with the outputs of the full network."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.data.mixup import Mixup
from torch import Tensor

from eagleeye_hf.evaluation.objective import TrainingObjective
from eagleeye_hf.training.config import FinetuneConfig


def training_loss(logits: Tensor, target: Tensor, teacher_logits: Tensor | None, config: FinetuneConfig) -> Tensor:
    """The mean over the images of a batch.

    Args:
        target: labels of shape `(N,)`, or smoothed probabilities of shape `(N, classes)`.
    """
    smoothing = config.label_smoothing if target.ndim == 1 else 0.0  # `mix` has smoothed already
    loss = F.cross_entropy(logits, target, label_smoothing=smoothing)
    if teacher_logits is None:
        return loss
    distilled = distillation_loss(logits, teacher_logits, config.temperature)
    return (1 - config.distillation) * loss + config.distillation * distilled


def objective_loss(
    outputs: Tensor,
    target: Tensor,
    teacher_outputs: Tensor | None,
    config: FinetuneConfig,
    objective: TrainingObjective,
) -> Tensor:
    """The same for an objective of one's own; distillation is the squared error over the teacher's energy."""
    loss = objective.loss(outputs.float(), target)
    if teacher_outputs is None:
        return loss
    wanted = teacher_outputs.float()
    distilled = (outputs.float() - wanted).square().mean() / wanted.square().mean().clamp_min(1e-12)
    return (1 - config.distillation) * loss + config.distillation * distilled


def distillation_loss(logits: Tensor, target: Tensor, temperature: float) -> Tensor:
    """Cross-entropy to the teacher's softened outputs, scaled as gradients need (Hinton et al. 2015, section 2)."""
    log_p = F.log_softmax(logits.float() / temperature, dim=1)
    q = F.softmax(target.float() / temperature, dim=1)
    return F.kl_div(log_p, q, reduction="batchmean") * temperature**2


def make_mixup(config: FinetuneConfig, num_classes: int) -> Mixup | None:
    """timm's mixup and cutmix, where they are asked for."""
    if not config.mixup and not config.cutmix:
        return None
    return Mixup(config.mixup, config.cutmix, label_smoothing=config.label_smoothing, num_classes=num_classes)


def mix(mixup: Mixup, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Mix images in pairs; timm wants an even number, so an odd one is paired with itself."""
    odd = len(images) % 2
    if odd:
        images, labels = torch.cat([images, images[-1:]]), torch.cat([labels, labels[-1:]])
    images, target = mixup(images, labels)
    return images[: len(images) - odd], target[: len(target) - odd]
