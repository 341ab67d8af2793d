"""What fine-tuning can't work with is refused, or turned into what it can, before anything starts."""

from __future__ import annotations

from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn

from eagleeye_hf.errors import EagleEyeError
from eagleeye_hf.networks.description import describe_model

SHARDING = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)
"""Ways to run in which no process has the whole network, which is scored and saved here."""


def check_accelerator(accelerator: Accelerator, model: nn.Module) -> None:
    """
    Raises:
        EagleEyeError: it would train otherwise than the config tells, or can't.
    """
    if accelerator.gradient_accumulation_steps != 1:
        raise EagleEyeError(
            f"`gradient_accumulation_steps={accelerator.gradient_accumulation_steps}` of accelerate would scale the "
            "gradients once more; leave it at 1, and use `--accumulation`"
        )
    if accelerator.distributed_type in SHARDING:
        raise EagleEyeError(
            f"accelerate is configured for {accelerator.distributed_type.value}, which trains parts of networks; "
            "choose multi-GPU there (`--multi_gpu`), and save memory with `--accumulation` and "
            "`--checkpoint-activations`"
        )
    synchronised = [name for name, module in model.named_modules() if isinstance(module, nn.SyncBatchNorm)]
    if synchronised and accelerator.num_processes > 1 and accelerator.device.type == "cpu":
        raise EagleEyeError(
            f"`model` has SyncBatchNorm ({synchronised[0]}), which needs GPUs to train in several processes; give it "
            "with BatchNorm, or train in one process"
        )


def check_teacher(teacher: nn.Module, model: nn.Module) -> None:
    """
    Raises:
        EagleEyeError: it has other outputs, or sees images otherwise.
    """
    theirs, ours = (
        {"num_classes": described.num_classes, "mean": described.mean, "std": described.std}
        for described in (describe_model(teacher), describe_model(model))
    )
    for what, value in ours.items():
        if theirs[what] != value:
            raise EagleEyeError(
                f"`teacher` has `{what}={theirs[what]}`, but `model` has {value}; give the network it was pruned from"
            )
