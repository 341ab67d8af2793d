"""What a run is told: one dataclass, from which the flags of recipes and commands are derived."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields
from typing import Any

from eagleeye_hf.runs.arguments import flag
from eagleeye_hf.search.config import SearchConfig
from eagleeye_hf.training.config import FinetuneConfig

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
"""That this process may use."""
WORKERS = min(4, CORES)


@dataclass(frozen=True, kw_only=True)
class ImagesConfig:
    """Which dataset, and how it is read; each field is a flag."""

    dataset: str = field(metadata={"help": "Hub name or local folder of an image classification dataset"})
    dataset_config: str | None = flag(None, "configuration of a dataset that has several")
    dataset_revision: str | None = flag(None, "branch, tag or commit of a Hub dataset")
    streaming: bool | None = flag(
        None, "read as a stream instead of downloading first; by default for the Hub and tars"
    )
    image_column: str | None = flag(None, "column of the images, where it can't be found")
    label_column: str | None = flag(None, "column of the labels, where it can't be found")
    label_names: list[str] | None = field(
        default=None, metadata={"help": "class names in the order of the outputs, instead of the dataset's"}
    )

    @property
    def splits(self) -> dict[str, Any]:
        """Arguments of `open_splits`."""
        keys = ("streaming", "image_column", "label_column", "label_names")
        own = {"config": self.dataset_config, "revision": self.dataset_revision}
        return own | {key: getattr(self, key) for key in keys}


@dataclass(frozen=True, kw_only=True)
class DataConfig(ImagesConfig):
    """The same, and which of its training images are set aside."""

    calibration_images: int = flag(1024, "training images that recompute BatchNorm statistics")
    holdout_images: int = flag(2048, "training images that score: candidates, the result, epochs")
    seed: int = flag(0, "of everything random")

    @property
    def splits(self) -> dict[str, Any]:
        return super().splits | {key: getattr(self, key) for key in ("calibration_images", "holdout_images", "seed")}


@dataclass(frozen=True, kw_only=True)
class TrainingDataConfig(DataConfig):
    """The same, and how training sees them."""

    hflip: bool = flag(True, "mirror training images at random; not where left and right matter, as in writing")
    augment: str | None = flag(None, "RandAugment and its kin in timm's words, as rand-m9-mstd0.5")

    @property
    def splits(self) -> dict[str, Any]:
        return super().splits | {"hflip": self.hflip, "augment": self.augment}

    @property
    def images(self) -> dict[str, Any]:
        """All that decides which images training sees, and how."""
        return {own.name: getattr(self, own.name) for own in fields(TrainingDataConfig)}


@dataclass(frozen=True, kw_only=True)
class RunConfig(TrainingDataConfig, FinetuneConfig):
    """Everything a run is told; each field is a flag of the recipes."""

    model: str = flag("mobilenetv1_100.ra4_e3600_r224_in1k", "timm name of the trained network")
    weights: str | None = flag(None, "safetensors file with its weights, instead of those of the Hub")
    dataset: str = flag("ILSVRC/imagenet-1k", "Hub name or local folder of an image classification dataset")
    macs: float | None = flag(0.5, "MACs to keep: a fraction of the full network, or an absolute number")
    params: float | None = flag(None, "parameters to keep, likewise")
    latency_ms: float | None = flag(None, "milliseconds of one image on this device to keep, likewise; measured")
    tolerance: float = flag(0.005, "how far the budget may be missed, as a fraction of the full network")
    divisor: int = flag(1, "widths are multiples of this many channels")
    max_ratio: float = flag(0.7, "largest fraction of channels removed from a group")
    criterion: str = flag("l1", "which channels stay: l1, l2, bn_scale, geometric_median, taylor or random")
    method: str = flag("evolution", "how the search goes on: random, evolution, uniform or global")
    candidates: int = flag(1000, "strategies to score")
    compensate: bool = flag(True, "repair the readers of removed channels by least squares before fine-tuning")
    strategy: str | None = flag(None, "JSON file (or FILE#NAME) with pruning ratios; skips the search")
    num_workers: int = flag(WORKERS, "processes that decode training images, per training process")
    output: str = flag("outputs/mbv1", "folder for the journal, the checkpoint and the card")
    license: str | None = flag(None, "licence of the result, as the Hub abbreviates it; by default the network's own")
    onnx_latency: bool = flag(False, "measure the latency in ONNX Runtime too (needs the extra `onnx`)")
    push_to: str | None = flag(None, "Hub repo to publish the result in")
    private: bool = flag(False, "make a new repo of `push_to` private")
    remote_code: bool = flag(False, "publish a modeling file too, for transformers without eagleeye_hf")

    @property
    def search(self) -> SearchConfig:
        keys = ("macs", "params", "latency_ms", "tolerance", "divisor", "max_ratio", "method", "candidates", "seed")
        return SearchConfig(**{key: getattr(self, key) for key in keys})

    @property
    def finetune(self) -> FinetuneConfig:
        return FinetuneConfig(**{f.name: getattr(self, f.name) for f in fields(FinetuneConfig)})
