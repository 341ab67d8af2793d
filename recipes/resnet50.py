"""ResNet-50 on ImageNet-1k at 3, 2 or 1 GMACs: the paper's largest experiment.

    accelerate launch recipes/resnet50.py --macs 3G --output outputs/resnet50-3g
    accelerate launch recipes/resnet50.py --macs 2G --output outputs/resnet50-2g
    accelerate launch recipes/resnet50.py --macs 1G --max-ratio 0.8 --output outputs/resnet50-1g

Instead of searching, the strategies that the authors found can be fine-tuned, 25, 50 or 75% of the MACs, from a file of
the pruning ratios they released (github.com/anonymous47823493/EagleEye, `search_results`):

    accelerate launch recipes/resnet50.py --strategy paper_strategies.json#resnet50_50 --output outputs/resnet50-authors

The paper (Li et al. 2020, table 3) prunes a ResNet-50 of 76.6% top-1 to 77.1% at 3 G, 76.4% at 2 G and 74.2% at 1 G.
"""

from dataclasses import dataclass

from accelerate import Accelerator

from eagleeye_hf import (
    ImportanceConfig,
    NetworkConfig,
    RunConfig,
    SearchConfig,
    compress_model,
    load_model,
    open_splits,
    run_recipe,
)


@dataclass(frozen=True, kw_only=True)
class ResNet50Config(RunConfig):
    """Defaults are the paper's; see `--help`."""

    network: NetworkConfig = NetworkConfig(model="resnet50.tv_in1k")
    search: SearchConfig = SearchConfig(macs="2G", candidates=1000, matched=False)
    importance: ImportanceConfig = ImportanceConfig(criterion="l1")
    output: str = "outputs/resnet50"


def main(config: ResNet50Config) -> None:
    """Search, prune, fine-tune, save and publish."""
    model = load_model(config.network.model, config.network.weights, config.network.inputs)
    data = open_splits(like=model, **config.splits, accelerator=Accelerator())
    compress_model(model, data, config)


if __name__ == "__main__":
    run_recipe(main, ResNet50Config)
