"""The whole method in about two minutes, without network: handwritten digits and a MobileNetV1 trained on the spot.

accelerate launch recipes/quickstart.py
"""

from dataclasses import dataclass

import timm
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image
from PIL import Image as PilImage
from sklearn.datasets import load_digits

from eagleeye_hf import (
    AdaptConfig,
    AugmentationConfig,
    DatasetConfig,
    FinetuneConfig,
    HeldOutConfig,
    NetworkConfig,
    RunConfig,
    SearchConfig,
    compress_model,
    finetune_model,
    open_splits,
    run_recipe,
)


@dataclass(frozen=True, kw_only=True)
class QuickstartConfig(RunConfig):
    """Half the MACs of a small network."""

    network: NetworkConfig = NetworkConfig(model="mobilenetv1_100")
    data: DatasetConfig = DatasetConfig(dataset="digits", num_workers=0)
    held_out: HeldOutConfig = HeldOutConfig(calibration_images=256, holdout_images=256)
    augmentation: AugmentationConfig = AugmentationConfig(hflip=False)
    adapt: AdaptConfig = AdaptConfig(adapt_epochs=6)
    search: SearchConfig = SearchConfig(candidates=40)
    finetune: FinetuneConfig = FinetuneConfig(epochs=6, batch_size=32, lr=0.05)
    output: str = "outputs/quickstart"


def digits() -> DatasetDict:
    """scikit-learn's 1,797 handwritten digits, a fifth of them for testing."""
    bunch = load_digits()
    images = [PilImage.fromarray((pixels * 15).astype("uint8")) for pixels in bunch.images]
    features = Features({"image": Image(), "label": ClassLabel(names=[str(digit) for digit in range(10)])})
    rows = Dataset.from_dict({"image": images, "label": bunch.target.tolist()}, features=features)
    return rows.train_test_split(test_size=0.2, seed=0)


def main(config: QuickstartConfig) -> None:
    """Train a small network, then prune half its MACs."""
    cfg = {"input_size": (3, 32, 32), "mean": (0.5,) * 3, "std": (0.5,) * 3, "crop_pct": 1.0}
    name, epochs = config.network.model, config.adapt.adapt_epochs
    model = timm.create_model(name, num_classes=10, output_stride=8, pretrained_cfg_overlay=cfg)
    data = open_splits(like=model, **config.splits | {"dataset": digits(), "name": config.data.dataset})
    print(f"training {name} on handwritten digits for {epochs} epochs")
    model = finetune_model(model, data.train, FinetuneConfig(epochs=epochs, batch_size=32, lr=config.adapt.adapt_lr))
    compress_model(model, data, config)


if __name__ == "__main__":
    run_recipe(main, QuickstartConfig)
