"""The score of a run or a search, from its settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol

from accelerate import Accelerator
from torch import nn

from eagleeye_hf.channels.graph import ChannelGraph
from eagleeye_hf.data.config import DatasetConfig
from eagleeye_hf.data.splits import Splits
from eagleeye_hf.data.unlabelled import TaughtImages
from eagleeye_hf.evaluation.config import ScoringConfig
from eagleeye_hf.evaluation.memory import scoring_batch
from eagleeye_hf.evaluation.objective import Agreement, Objective
from eagleeye_hf.evaluation.score import AdaptiveBNScore
from eagleeye_hf.networks.running import Batch, device_of
from eagleeye_hf.pruning.config import ImportanceConfig
from eagleeye_hf.runtimes.config import LatencyConfig
from eagleeye_hf.search.config import SearchConfig

COMPENSATE: dict[str, bool | Literal["auto"]] = {"auto": "auto", "adaptive": False, "compensated": True}


class Settings(Protocol):
    """What of the settings decides scores."""

    @property
    def search(self) -> SearchConfig: ...
    @property
    def scoring(self) -> ScoringConfig: ...
    @property
    def importance(self) -> ImportanceConfig: ...
    @property
    def measuring(self) -> LatencyConfig: ...
    @property
    def data(self) -> DatasetConfig: ...
    @property
    def seed(self) -> int: ...


def make_score(
    model: nn.Module,
    graph: ChannelGraph,
    data: Splits,
    settings: Settings,
    accelerator: Accelerator | None = None,
    calibration: Sequence[Batch] | None = None,
) -> AdaptiveBNScore:
    """Scores by adaptive BatchNorm on the dataset's calibration and holdout images: by their labels or, without any, by
    the full network's outputs.

    Args:
        accelerator: its processes decode the images together.
        calibration: instead of all calibration images.
    """
    objective: Objective | None = None
    batch = scoring_batch(model, graph.input_size)
    kept: dict[str, Any] = {"device": device_of(model), "accelerator": accelerator}
    kept["num_workers"] = settings.data.num_workers
    if isinstance(data.holdout, TaughtImages):
        objective, holdout = Agreement(), data.holdout.taught_batches(batch, **kept)
    else:
        holdout = data.holdout.cached_batches(batch, **kept)
    score = AdaptiveBNScore(
        model,
        graph,
        data.calibration.cached_batches(batch, **kept) if calibration is None else calibration,
        holdout,
        objective=objective,
        criterion=settings.importance.criterion,
        compensate=COMPENSATE[settings.scoring.scores],
        format=settings.scoring.format,
        seed=settings.seed,
        latency=settings.measuring,
        threads=settings.scoring.scoring_threads,
    )
    if "width" in settings.search.dimensions:
        score.builder.importance.prepare(accelerator)
    return score
