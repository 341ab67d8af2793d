"""MobileNetV1 on CIFAR-10 at three budgets; without `--weights` the network is trained from scratch first.

    accelerate launch recipes/cifar10_mbv1.py --output outputs/cifar10_mbv1

Results are in OUTPUT-26.5M, OUTPUT-12.1M and OUTPUT-3.3M, or in OUTPUT-0.5 with `--macs 0.5`; repos of `--push-to` are
named likewise. Images are doubled to 64 px, so that the network's stride of 32 leaves 2 x 2 pixels and the full network
costs 46.4 M MACs, as in the paper.

The paper (Li et al. 2020, table 5) reaches 91.89% top-1 at 26.5 M, 91.44% at 12.1 M and 88.01% at 3.3 M MACs.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import timm

from eagleeye_hf import RunConfig, compress_model, finetune_model, load_model, open_splits, run_recipe

BUDGETS = (26.5e6, 12.1e6, 3.3e6)
SMALL = {"input_size": (3, 64, 64), "crop_pct": 1.0}


@dataclass(frozen=True, kw_only=True)
class Cifar10MobileNetV1Config(RunConfig):
    """Three budgets, or the one given; 120 epochs each."""

    macs: float | None = None
    model: str = "mobilenetv1_100"
    dataset: str = "uoft-cs/cifar10"
    max_ratio: float = 0.85
    batch_size: int = 128
    lr: float = 0.05
    distillation: float = 0.9
    temperature: float = 4.0
    base_epochs: int = 200
    base_lr: float = 0.1
    output: str = "outputs/cifar10_mbv1"


def main(config: Cifar10MobileNetV1Config) -> None:
    """Train where there are no weights; search, prune, fine-tune and save at each budget."""
    trained = config.weights is not None
    model = load_model(config.model, config.weights) if trained else timm.create_model(config.model, num_classes=10)
    model.pretrained_cfg.update(SMALL)
    data = open_splits(config.dataset, like=model, **config.splits)
    if not trained:
        training = replace(config.finetune, epochs=config.base_epochs, lr=config.base_lr)
        folder = Path(config.output) / "training-base"
        model = finetune_model(model, data.train, training, holdout=data.holdout, checkpoint=folder)
    for macs in [config.macs] if config.macs else BUDGETS:
        budget = f"-{macs:g}" if macs <= 1 else f"-{macs / 1e6:g}M"
        output, push_to = config.output + budget, config.push_to and config.push_to + budget
        if not (Path(output) / "config.json").exists():
            compress_model(model, data, replace(config, macs=macs, output=output, push_to=push_to))


if __name__ == "__main__":
    run_recipe(main, Cifar10MobileNetV1Config)
