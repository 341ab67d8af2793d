"""ResNet-56 on CIFAR-10 at half the MACs; without `--weights` the network is trained from scratch first.

    accelerate launch recipes/cifar10_resnet56.py
    accelerate launch recipes/cifar10_resnet56.py --weights resnet56.safetensors --dataset FOLDER --epochs 10 --lr 0.02

A short fine-tuning wants a lower learning rate than the 120 epochs of the default. The paper (Li et al. 2020, table 5)
reaches 94.66% top-1 at 62.23 M MACs.
"""

from dataclasses import dataclass

import timm
from accelerate import Accelerator

from eagleeye_hf import (
    AdaptConfig,
    DatasetConfig,
    FinetuneConfig,
    NetworkConfig,
    RunConfig,
    SearchConfig,
    adapt_model,
    compress_model,
    load_model,
    open_splits,
    run_recipe,
)


@dataclass(frozen=True, kw_only=True)
class Cifar10ResNet56Config(RunConfig):
    """Half the MACs, 120 epochs."""

    network: NetworkConfig = NetworkConfig(model="resnet56_cifar")
    data: DatasetConfig = DatasetConfig(dataset="uoft-cs/cifar10")
    adapt: AdaptConfig = AdaptConfig(adapt_epochs=200, adapt_lr=0.1)
    search: SearchConfig = SearchConfig(candidates=1000)
    finetune: FinetuneConfig = FinetuneConfig(batch_size=128, lr=0.05, distillation=0.9, temperature=4.0)
    output: str = "outputs/cifar10_resnet56"


def main(config: Cifar10ResNet56Config) -> None:
    """Train where there are no weights; search, prune, fine-tune, save and publish."""
    name, weights = config.network.model, config.network.weights
    model = load_model(name, weights, config.network.inputs) if weights else timm.create_model(name)
    data = open_splits(like=model, **config.splits, accelerator=Accelerator())
    if not weights:
        model = adapt_model(model, data, config)
    compress_model(model, data, config)


if __name__ == "__main__":
    run_recipe(main, Cifar10ResNet56Config)
