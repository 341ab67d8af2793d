"""Which weights are returned: those that score best on the holdout images, of the start and of every epoch."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from accelerate import Accelerator
from torch import Tensor, nn

from eagleeye_hf.data.pairs import TrainingImages
from eagleeye_hf.evaluation.batchnorm import recalibrate_bn
from eagleeye_hf.evaluation.metrics import evaluate_model
from eagleeye_hf.evaluation.objective import Score, TrainingObjective
from eagleeye_hf.networks.running import Batch
from eagleeye_hf.training.loop import Training

STATISTICS = 8192
"""Images from which the BatchNorm statistics of the result are recomputed; from fewer, top-1 depends on which."""
AS_GIVEN, RECOMPUTED = "it is returned as it was", "it is returned with recomputed statistics"
"""What is said where the network was best before it was trained."""


class Selection:
    """The best weights so far, judged by the holdout images."""

    def __init__(
        self,
        model: nn.Module,
        holdout: TrainingImages | None,
        calibration: TrainingImages | None,
        accelerator: Accelerator,
        objective: TrainingObjective | None = None,
        num_workers: int = 0,
    ) -> None:
        self.objective = objective
        self.network = copy.deepcopy(model).to(accelerator.device).eval()
        """A plain network to put weights in: neither wrapped nor compiled."""
        self.given = model
        self.holdout: Sequence[Batch] | None = None
        if holdout is not None and holdout.count():
            self.holdout = holdout.cached_batches(128, accelerator.device, accelerator, num_workers)
        self.calibration, self.accelerator = calibration, accelerator
        self.seen: list[Tensor] = []
        """This process's part of the calibration images as training sees them, decoded once."""
        self.best: dict[str, Any] | None = None

    def start(self, training: Training) -> None:
        """Score the network as it was given and, as the epochs are, with recomputed statistics."""
        if self.holdout is None:
            return
        self._keep(self._score(), AS_GIVEN)
        if self.calibration is not None:
            self._recalibrate(training)
            self._keep(self._score(), RECOMPUTED)

    def consider(self, training: Training) -> dict[str, float]:
        """Score the weights and their average; keep them if they are the best."""
        scores: dict[str, float] = {}
        if self.holdout is None:
            return scores
        for name, weights in _weights(training):
            self.network.load_state_dict(weights)
            if self.calibration is not None:
                self._recalibrate(training)
            metrics = self._score()
            scores[name] = metrics.reported
            self._keep(metrics)
        return scores

    def result(self, training: Training) -> nn.Module:
        """The best weights, or the last; their statistics from as many images as steady ones need."""
        self.network.load_state_dict(self.best["weights"] if self.best else list(_weights(training))[-1][1])
        if self.calibration is not None and not (self.best and self.best.get("start") == AS_GIVEN):
            batches = training.calibration_batches(self.calibration, STATISTICS)
            recalibrate_bn(self.network, batches, accelerator=self.accelerator)
            if self.holdout is not None:
                self._compare_with_given()
        return self.network.cpu().eval()

    def describe(self) -> str | None:
        """What to say where no epoch was better than the start."""
        if self.best is None or not self.best.get("start"):
            return None
        value = self.best["reported"]
        shown = f"{value:.2%}" if self.objective is None else f"{self.objective.reports} {value:.4g}"
        return f"no epoch beat the network it started from ({shown} on the holdout images); {self.best['start']}"

    def _compare_with_given(self) -> None:
        """Go back to the network as it was given where the last statistics, of other images, fell behind it."""
        chosen, weights = self._score(), self._copy_weights()
        self.network.load_state_dict(self.given.state_dict())
        given = self._score()
        if _rank(given) > _rank(chosen):
            self.best = {**asdict(given), "start": AS_GIVEN}
        else:
            self.network.load_state_dict(weights)

    def _copy_weights(self) -> dict[str, Tensor]:
        return {key: tensor.detach().cpu().clone() for key, tensor in self.network.state_dict().items()}

    def _recalibrate(self, training: Training) -> None:
        assert self.calibration is not None
        self.seen = self.seen or list(training.calibration_batches(self.calibration))
        recalibrate_bn(self.network, self.seen, accelerator=self.accelerator)

    def _score(self) -> Score:
        assert self.holdout is not None
        if self.objective is not None:  # in every process on all images: what it reports may be no mean
            return self.objective.measure(self.network, self.holdout)
        part = self.holdout[self.accelerator.process_index :: self.accelerator.num_processes]
        found = evaluate_model(self.network, part, self.accelerator)
        return Score(loss=found.loss, reported=found.top1, num_images=found.num_images)

    def _keep(self, metrics: Score, start: str = "") -> None:
        if self.best is None or _rank(metrics) > self.best["rank"]:
            self.best = {**asdict(metrics), "rank": _rank(metrics), "weights": self._copy_weights(), "start": start}


def _rank(metrics: Score) -> tuple[float, float]:
    return metrics.reported, -metrics.loss if math.isfinite(metrics.loss) else -math.inf


def _weights(training: Training) -> Iterator[tuple[str, dict[str, Tensor]]]:
    yield "top1", training.network.state_dict()
    if training.ema is not None:
        yield "ema_top1", training.ema.module.state_dict()
