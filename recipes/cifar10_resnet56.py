"""ResNet-56 on CIFAR-10 at half the MACs; without `--weights` the network is trained from scratch first.

    accelerate launch recipes/cifar10_resnet56.py
    accelerate launch recipes/cifar10_resnet56.py --weights resnet56.safetensors --dataset FOLDER --epochs 10 --lr 0.02

A short fine-tuning wants a lower learning rate than the 120 epochs of the default. The paper (Li et al. 2020, table 5)
reaches 94.66% top-1 at 62.23 M MACs.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import timm

from eagleeye_hf import RunConfig, compress_model, finetune_model, load_model, open_splits, run_recipe


@dataclass(frozen=True, kw_only=True)
class Cifar10ResNet56Config(RunConfig):
    """Half the MACs, 120 epochs."""

    model: str = "resnet56_cifar"
    dataset: str = "uoft-cs/cifar10"
    batch_size: int = 128
    lr: float = 0.05
    distillation: float = 0.9
    temperature: float = 4.0
    base_epochs: int = 200
    base_lr: float = 0.1
    output: str = "outputs/cifar10_resnet56"


def main(config: Cifar10ResNet56Config) -> None:
    """Train where there are no weights; search, prune, fine-tune, save and publish."""
    model = load_model(config.model, config.weights) if config.weights else timm.create_model(config.model)
    data = open_splits(config.dataset, like=model, **config.splits)
    if not config.weights:
        training = replace(config.finetune, epochs=config.base_epochs, lr=config.base_lr)
        folder = Path(config.output) / "training-base"
        model = finetune_model(model, data.train, training, holdout=data.holdout, checkpoint=folder)
    compress_model(model, data, config)


if __name__ == "__main__":
    run_recipe(main, Cifar10ResNet56Config)
