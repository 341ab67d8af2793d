"""The score of a run or a search, from its settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

from torch import nn

from eagleeye_hf.channels.graph import ChannelGraph
from eagleeye_hf.data.splits import Splits
from eagleeye_hf.data.unlabelled import TaughtImages
from eagleeye_hf.evaluation.config import ScoringConfig
from eagleeye_hf.evaluation.objective import Agreement, Objective
from eagleeye_hf.evaluation.score import AdaptiveBNScore
from eagleeye_hf.networks.running import Batch
from eagleeye_hf.pruning.config import ImportanceConfig
from eagleeye_hf.runtimes.config import LatencyConfig

COMPENSATE: dict[str, bool | Literal["auto"]] = {"auto": "auto", "adaptive": False, "compensated": True}


class Settings(Protocol):
    """What of the settings decides scores."""

    @property
    def scoring(self) -> ScoringConfig: ...
    @property
    def importance(self) -> ImportanceConfig: ...
    @property
    def measuring(self) -> LatencyConfig: ...
    @property
    def seed(self) -> int: ...


def make_score(
    model: nn.Module,
    graph: ChannelGraph,
    data: Splits,
    settings: Settings,
    calibration: Sequence[Batch] | None = None,
) -> AdaptiveBNScore:
    """Scores by adaptive BatchNorm on the dataset's calibration and holdout images: by their labels or, without any, by
    the full network's outputs.

    Args:
        calibration: instead of all calibration images.
    """
    objective: Objective | None = None
    if isinstance(data.holdout, TaughtImages):
        objective, holdout = Agreement(), data.holdout.taught_batches()
    else:
        holdout = data.holdout.cached_batches()
    return AdaptiveBNScore(
        model,
        graph,
        data.calibration.cached_batches() if calibration is None else calibration,
        holdout,
        objective=objective,
        criterion=settings.importance.criterion,
        compensate=COMPENSATE[settings.scoring.scores],
        format=settings.scoring.format,
        seed=settings.seed,
        latency=settings.measuring,
    )
