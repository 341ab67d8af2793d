"""What a run is told: a tree of settings, each written once; its names are the flags of recipes and commands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from tyro.conf import arg

from eagleeye_hf.configs import Within, check_fields, flat_dict
from eagleeye_hf.data.config import AugmentationConfig, DatasetConfig, HeldOutConfig
from eagleeye_hf.errors import EagleEyeError
from eagleeye_hf.evaluation.config import ScoringConfig
from eagleeye_hf.networks.config import InputConfig
from eagleeye_hf.pruning.config import ImportanceConfig, MatchConfig, RepairConfig
from eagleeye_hf.runtimes.config import LatencyConfig
from eagleeye_hf.search.config import SearchConfig
from eagleeye_hf.strategies.space import DIMENSIONS
from eagleeye_hf.study.config import StudyConfig
from eagleeye_hf.training.config import FinetuneConfig, SizedFinetuneConfig

Seed = Annotated[int, Within("[0, inf)")]


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Which network."""

    model: Annotated[str, arg(metavar="MODEL")]
    """timm name, hf-hub:USER/REPO or checkpoint folder, ours or timm's."""
    weights: str | None = None
    """File with its weights, instead of those of the Hub: safetensors, or a state_dict in .pth, .pt or .bin."""
    inputs: InputConfig = InputConfig()

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class AdaptConfig:
    """Training of the full network before it is pruned, where its weights are for other images or other classes."""

    adapt_epochs: Annotated[int, Within("[0, inf)")] | None = None
    """Epochs of training the full network first; the other settings are those of fine-tuning. None: some, where its
    classes are not the dataset's, else none."""
    adapt_lr: Annotated[float, Within("(0, inf)")] | None = None
    """Its highest learning rate; None: that of fine-tuning."""

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class HubConfig:
    """How a checkpoint is published on the Hub."""

    private: bool = False
    """Make a new repo private."""
    remote_code: bool = False
    """Publish modeling files too, so that transformers loads it without eagleeye_hf."""

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class PublishConfig:
    """Where the result goes after it is saved."""

    license: str | None = None
    """Licence of the result, as the Hub abbreviates it; by default the network's own."""
    push_to: str | None = None
    """Hub repo to publish the result in."""

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything a whole run is told."""

    network: NetworkConfig
    data: DatasetConfig = DatasetConfig()
    held_out: HeldOutConfig = HeldOutConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    adapt: AdaptConfig = AdaptConfig()
    search: SearchConfig = SearchConfig(dimensions=DIMENSIONS)
    scoring: ScoringConfig = ScoringConfig()
    importance: ImportanceConfig = ImportanceConfig()
    repair: RepairConfig = RepairConfig()
    match: MatchConfig = MatchConfig()
    measuring: LatencyConfig = LatencyConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    publishing: PublishConfig = PublishConfig()
    hub: HubConfig = HubConfig()
    strategy: str | None = None
    """JSON file (or FILE#NAME) with pruning ratios or widths; skips the search."""
    seed: Seed = 0
    """Of everything random."""
    output: str = "outputs/compressed"
    """Folder for the journal, the checkpoint and the card."""

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def splits(self) -> dict[str, Any]:
        """Arguments of `open_splits`."""
        return split_arguments(self.data.settle(self.epochs), self.held_out, self.augmentation, self.seed)

    @property
    def images(self) -> dict[str, Any]:
        """All that decides which images training sees, and how."""
        return image_identity(self.data.settle(self.epochs), self.held_out, self.augmentation, self.seed)

    @property
    def epochs(self) -> int | None:
        """Of all training; None where it is left open."""
        return None if self.finetune.epochs is None else self.finetune.epochs + (self.adapt.adapt_epochs or 0)

    @property
    def local_weights(self) -> bool:
        """Whether the full network's weights are other ones than timm's: from a file, or trained in this run."""
        return self.network.weights is not None or bool(self.adapt.adapt_epochs)


@dataclass(frozen=True, kw_only=True)
class JobConfig(RunConfig):
    """A whole run, whose settings go by the data where they are left open."""

    finetune: SizedFinetuneConfig = SizedFinetuneConfig()  # type: ignore[assignment]
    """How the pruned network is trained further."""

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """Another network, beside the one at hand."""

    teacher: str | None = None
    """Another trained network, as the unpruned one: `finetune` learns from it beside the labels, `evaluate` measures
    agreement with its decisions instead of accuracy, so that images need no labels."""
    teacher_weights: str | None = None
    """File with the teacher's weights, instead of those of the Hub."""


@dataclass(frozen=True, kw_only=True)
class FinetuneRunConfig(TeacherConfig):
    """Everything that training a checkpoint further is told."""

    network: NetworkConfig
    data: DatasetConfig = DatasetConfig()
    held_out: HeldOutConfig = HeldOutConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    measuring: LatencyConfig = LatencyConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    publishing: PublishConfig = PublishConfig()
    hub: HubConfig = HubConfig()
    seed: Seed = 0
    """Of everything random."""
    output: str = "outputs/finetuned"
    """Folder for the new checkpoint and its card."""

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class StudyRunConfig:
    """Everything a study is told."""

    network: NetworkConfig
    data: DatasetConfig = DatasetConfig()
    held_out: HeldOutConfig = HeldOutConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    study: StudyConfig = StudyConfig()
    search: SearchConfig = SearchConfig()
    scoring: ScoringConfig = ScoringConfig()
    importance: ImportanceConfig = ImportanceConfig()
    match: MatchConfig = MatchConfig(match_steps=20)
    measuring: LatencyConfig = LatencyConfig()
    finetune: FinetuneConfig = FinetuneConfig(epochs=3, batch_size=64, lr=0.02)
    seed: Seed = 0
    """Of everything random."""
    output: str = "outputs/study"
    """Folder for the journal, the fine-tuned weights, tables, figures and REPORT.md."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.finetune.epochs == 0:
            raise EagleEyeError("`epochs=0`: a study compares scores with accuracy after fine-tuning; give at least 1")


def check_held_out(held_out: HeldOutConfig) -> None:
    """
    Raises:
        EagleEyeError: there are no images to recompute statistics from, or none to score on.
    """
    for name, use in (("calibration_images", "recompute BatchNorm statistics"), ("holdout_images", "score")):
        if getattr(held_out, name) == 0:
            raise EagleEyeError(f"`{name}=0`: training images that {use} are needed here; give at least 1")


def split_arguments(
    data: DatasetConfig,
    held_out: HeldOutConfig,
    augmentation: AugmentationConfig | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Arguments of `open_splits`."""
    return {**data.arguments, **flat_dict(held_out), **flat_dict(augmentation or AugmentationConfig()), "seed": seed}


def image_identity(
    data: DatasetConfig, held_out: HeldOutConfig, augmentation: AugmentationConfig, seed: int
) -> dict[str, Any]:
    """What must stay the same where training goes on."""
    settings = flat_dict(data) | flat_dict(held_out) | flat_dict(augmentation) | {"seed": seed}
    return {name: value for name, value in settings.items() if name != "num_workers"}
