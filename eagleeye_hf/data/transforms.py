"""From a decoded image to the tensor that a model wants."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image
from timm.data.auto_augment import rand_augment_transform
from timm.data.config import resolve_data_config
from timm.data.transforms_factory import create_transform
from torch import Tensor, nn
from torchvision import transforms

from eagleeye_hf.errors import EagleEyeError

Transform = Callable[[Image.Image], Tensor]
SMALL_IMAGE = 64
"""Up to this size in pixels, training crops shift by a few pixels instead of zooming, as is usual on CIFAR."""


@dataclass(frozen=True, kw_only=True)
class SmallCrop:
    """Training images of a few pixels: resized, shifted at random, mirrored at random."""

    size: tuple[int, int]
    resize: Callable[[Image.Image], Image.Image]
    hflip: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def padding(self) -> int:
        """Pixels by which a crop may shift, each way."""
        return self.size[0] // 8


@dataclass(frozen=True, kw_only=True)
class Transforms:
    """How a model sees images, from its own `pretrained_cfg`."""

    training: Transform
    evaluation: Transform
    mode: str
    """PIL's name of the channels."""
    small: SmallCrop | None
    """The same as `training` where that is only a shift and a mirror; else None."""


def build_transforms(model: nn.Module, hflip: bool = True, augment: str | None = None) -> Transforms:
    """Training and evaluation transforms as timm makes them.

    Args:
        hflip: mirror training images at random.
        augment: timm's description of RandAugment, AutoAugment or AugMix, as `rand-m9-mstd0.5`.
    Raises:
        EagleEyeError: `augment` is not understood.
    """
    config = resolve_data_config(model=model)
    channels, *pixels = config["input_size"]
    size = (pixels[0], pixels[1])
    evaluation = create_transform(**config)
    mode = "L" if channels == 1 else "RGB"
    try:
        if max(size) > SMALL_IMAGE:
            training = create_transform(**config, is_training=True, hflip=0.5 * hflip, auto_augment=augment)
            return Transforms(training=training, evaluation=evaluation, mode=mode, small=None)
        interpolation = transforms.InterpolationMode(config["interpolation"].replace("random", "bilinear"))
        resize = transforms.Resize(size, interpolation)
        small = SmallCrop(size=size, resize=resize, hflip=hflip, mean=config["mean"], std=config["std"])
        steps = [resize, transforms.RandomCrop(size, padding=small.padding)]
        steps.append(transforms.RandomHorizontalFlip(0.5 * hflip))
        if augment:
            fill = tuple(min(255, round(255 * level)) for level in config["mean"])
            steps.append(rand_augment_transform(augment, {"translate_const": int(size[0] * 0.45), "img_mean": fill}))
        steps += [transforms.ToTensor(), transforms.Normalize(config["mean"], config["std"])]
    except (AssertionError, KeyError, ValueError, IndexError) as error:
        raise EagleEyeError(
            f"`augment={augment}` is not understood by timm ({error}); an example is rand-m9-mstd0.5"
        ) from error
    training = transforms.Compose(steps)
    return Transforms(training=training, evaluation=evaluation, mode=mode, small=None if augment else small)
