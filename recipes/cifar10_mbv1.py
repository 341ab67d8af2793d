"""MobileNetV1 on CIFAR-10 at three budgets; without `--weights` the network is trained from scratch first.

    accelerate launch recipes/cifar10_mbv1.py --output outputs/cifar10_mbv1

Results are in OUTPUT-26.5M, OUTPUT-12.1M and OUTPUT-3.3M, or in OUTPUT-0.5 with `--macs 0.5`; repos of `--push-to` are
named likewise. Images are doubled to 64 px, so that the network's stride of 32 leaves 2 x 2 pixels and the full network
costs 46.4 M MACs, as in the paper.

The paper (Li et al. 2020, table 5) reaches 91.89% top-1 at 26.5 M, 91.44% at 12.1 M and 88.01% at 3.3 M MACs.
"""

from dataclasses import dataclass, replace

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

SMALL = {"input_size": (3, 64, 64), "crop_pct": 1.0}


@dataclass(frozen=True, kw_only=True)
class Cifar10MobileNetV1Config(RunConfig):
    """Three budgets, or those given; 120 epochs each."""

    network: NetworkConfig = NetworkConfig(model="mobilenetv1_100")
    data: DatasetConfig = DatasetConfig(dataset="uoft-cs/cifar10")
    adapt: AdaptConfig = AdaptConfig(adapt_epochs=200, adapt_lr=0.1)
    search: SearchConfig = SearchConfig(macs=("26.5M", "12.1M", "3.3M"), max_ratio=0.85, candidates=1000)
    finetune: FinetuneConfig = FinetuneConfig(batch_size=128, lr=0.05, distillation=0.9, temperature=4.0)
    output: str = "outputs/cifar10_mbv1"


def main(config: Cifar10MobileNetV1Config) -> None:
    """Train where there are no weights; search, prune, fine-tune and save at each budget."""
    name, weights = config.network.model, config.network.weights
    model = load_model(name, weights, config.network.inputs) if weights else timm.create_model(name, num_classes=10)
    model.pretrained_cfg.update(SMALL)
    data = open_splits(like=model, **config.splits, accelerator=Accelerator())
    if not weights:
        model = adapt_model(model, data, config)
    for budget in config.search.budgets:
        search = replace(config.search, macs=budget.macs, params=budget.params, latency=budget.latency)
        output = f"{config.output}-{budget.macs}"
        push_to = config.publishing.push_to and f"{config.publishing.push_to}-{budget.macs}"
        publishing = replace(config.publishing, push_to=push_to)
        compress_model(model, data, replace(config, search=search, output=output, publishing=publishing))


if __name__ == "__main__":
    run_recipe(main, Cifar10MobileNetV1Config)
