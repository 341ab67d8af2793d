"""The whole method in about two minutes, without network: handwritten digits and a MobileNetV1 trained on the spot.

accelerate launch recipes/quickstart.py
"""

from dataclasses import dataclass

import timm
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image
from PIL import Image as PilImage
from sklearn.datasets import load_digits

from eagleeye_hf import FinetuneConfig, RunConfig, compress_model, finetune_model, open_splits, run_recipe


@dataclass(frozen=True, kw_only=True)
class QuickstartConfig(RunConfig):
    """Half the MACs of a small network."""

    model: str = "mobilenetv1_100"
    dataset: str = "digits"
    candidates: int = 40
    calibration_images: int = 256
    holdout_images: int = 256
    base_epochs: int = 6
    epochs: int = 6
    batch_size: int = 32
    lr: float = 0.05
    hflip: bool = False
    num_workers: int = 0
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
    model = timm.create_model(config.model, num_classes=10, output_stride=8, pretrained_cfg_overlay=cfg)
    data = open_splits(digits(), like=model, name=config.dataset, **config.splits)
    print(f"training {config.model} on handwritten digits for {config.base_epochs} epochs")
    model = finetune_model(model, data.train, FinetuneConfig(epochs=config.base_epochs, batch_size=32, lr=0.1))
    compress_model(model, data, config)


if __name__ == "__main__":
    run_recipe(main, QuickstartConfig)
