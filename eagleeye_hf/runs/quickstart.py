"""The whole method on images that need no network: what `eagleeye quickstart` does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from eagleeye_hf.data.config import AugmentationConfig, DatasetConfig, HeldOutConfig
from eagleeye_hf.errors import EagleEyeError
from eagleeye_hf.runs.config import AdaptConfig, NetworkConfig, RunConfig
from eagleeye_hf.search.config import SearchConfig
from eagleeye_hf.training.config import FinetuneConfig

if TYPE_CHECKING:
    from datasets import DatasetDict


@dataclass(frozen=True, kw_only=True)
class QuickstartConfig(RunConfig):
    """Half the MACs of a small network."""

    network: NetworkConfig = NetworkConfig(model="mobilenetv1_100")
    data: DatasetConfig = DatasetConfig(dataset="digits", num_workers=0)
    held_out: HeldOutConfig = HeldOutConfig(calibration_images=256, holdout_images=256)
    augmentation: AugmentationConfig = AugmentationConfig(hflip=False)
    adapt: AdaptConfig = AdaptConfig(adapt_epochs=6, adapt_lr=0.1)
    search: SearchConfig = SearchConfig(candidates=40)
    finetune: FinetuneConfig = FinetuneConfig(epochs=6, batch_size=32, lr=0.05)
    output: str = "outputs/quickstart"


def run_quickstart(config: QuickstartConfig) -> None:
    """The whole method in two to three minutes, without network: digits, and a MobileNetV1 trained on the spot."""
    import timm
    from accelerate.utils import set_seed

    from eagleeye_hf.data.splits import open_splits
    from eagleeye_hf.runs.compress import compress_model
    from eagleeye_hf.runs.folder import check_output
    from eagleeye_hf.runs.recipe import use_all_cores
    from eagleeye_hf.telling import say
    from eagleeye_hf.training.finetune import finetune_model

    use_all_cores()
    check_output(config.output, "compress")  # before anything takes time
    images = digits()
    set_seed(config.seed)
    cfg = {"input_size": (3, 32, 32), "mean": (0.5,) * 3, "std": (0.5,) * 3, "crop_pct": 1.0}
    name, epochs, lr = config.network.model, config.adapt.adapt_epochs or 0, config.adapt.adapt_lr or 0.1
    model = timm.create_model(name, num_classes=10, output_stride=8, pretrained_cfg_overlay=cfg)
    data = open_splits(like=model, **config.splits | {"dataset": images, "name": config.data.dataset})
    say(f"training {name} on handwritten digits for {epochs} epochs")
    model = finetune_model(model, data.train, FinetuneConfig(epochs=epochs, batch_size=32, lr=lr))
    compress_model(model, data, config)


def digits() -> DatasetDict:
    """scikit-learn's 1,797 handwritten digits, a fifth of them for testing.

    Raises:
        EagleEyeError: scikit-learn is not installed.
    """
    from datasets import ClassLabel, Dataset, Features, Image
    from PIL import Image as PilImage

    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise EagleEyeError("the quickstart's images come with scikit-learn: pip install scikit-learn") from error
    bunch = load_digits()
    images = [PilImage.fromarray((pixels * 15).astype("uint8")) for pixels in bunch.images]
    features = Features({"image": Image(), "label": ClassLabel(names=[str(digit) for digit in range(10)])})
    rows = Dataset.from_dict({"image": images, "label": bunch.target.tolist()}, features=features)
    return rows.train_test_split(test_size=0.2, seed=0)
