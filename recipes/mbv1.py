"""The paper's main experiment: MobileNetV1 on ImageNet-1k at 50% of the MACs.

    accelerate launch recipes/mbv1.py
    accelerate launch recipes/mbv1.py --model resnet20_cifar --weights FILE --dataset FOLDER --epochs 5

The paper (Li et al. 2020, table 4) prunes a MobileNetV1 of 70.9% top-1 to 284 M FLOPs at 70.9% top-1.
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
class MobileNetV1Config(RunConfig):
    """Defaults are the paper's; see `--help`."""

    network: NetworkConfig = NetworkConfig(model="mobilenetv1_100.ra4_e3600_r224_in1k")
    search: SearchConfig = SearchConfig(candidates=1000, matched=False)
    importance: ImportanceConfig = ImportanceConfig(criterion="l1")
    output: str = "outputs/mbv1"


def main(config: MobileNetV1Config) -> None:
    """Search, prune, fine-tune, save and publish."""
    model = load_model(config.network.model, config.network.weights, config.network.inputs)
    data = open_splits(like=model, **config.splits, accelerator=Accelerator())
    compress_model(model, data, config)


if __name__ == "__main__":
    run_recipe(main, MobileNetV1Config)
