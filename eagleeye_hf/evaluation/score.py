"""The score of a candidate: thin, recompute BatchNorm, evaluate on the holdout images."""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from eagleeye_hf.channels.cut import named_tensors
from eagleeye_hf.channels.graph import ChannelGraph
from eagleeye_hf.channels.refill import Skeleton
from eagleeye_hf.channels.slicing import slice_model
from eagleeye_hf.evaluation.batchnorm import Batch, batch_norms, recalibrate_bn
from eagleeye_hf.evaluation.format import Format, fastest_format, rank_correlation, time_formats
from eagleeye_hf.evaluation.metrics import Metrics, evaluate_model
from eagleeye_hf.pruning.compensate import Moments, collect_moments, compensate_readers
from eagleeye_hf.pruning.importance import Importance
from eagleeye_hf.runtimes.latency import fit_latency, measure_latency

SAME_RANKING = 0.9
"""Least rank correlation with float32 at which a lower precision may score."""


class AdaptiveBNScore:
    """Scores widths by adaptive BatchNorm evaluation (paper, section 3.3).

    Importance and moments are computed once; a candidate is cut out of the full model's tensors and put into modules
    that are built once per thread. Beside the model and the images that are given this takes the images once in the
    chosen format and, per thread, the thin weights and the activations of one batch.

    Args:
        calibration: batches of training images, used only to recompute the statistics (and for compensation).
        holdout: batches of other training images, used only to score.
        criterion: which channels stay, as in `choose_channels`.
        momentum: as in `recalibrate_bn`.
        compensate: repair the readers of removed channels before scoring.
        format: memory format and precision; None lets `prepare` choose the fastest that ranks alike.
        seed: of the criterion `random`.
    """

    def __init__(
        self,
        model: nn.Module,
        graph: ChannelGraph,
        calibration: Sequence[Batch],
        holdout: Sequence[Batch],
        *,
        criterion: str = "l1",
        momentum: float | None = None,
        compensate: bool = False,
        format: Format | None = None,
        seed: int = 0,
    ) -> None:
        batch_norms(model)  # refuses a network without any
        self.model, self.graph = model, graph
        self.calibration, self.holdout = calibration, holdout
        self.criterion, self.momentum, self.compensate, self.seed = criterion, momentum, compensate, seed
        self.format = self._given_format = format
        with one_thread():
            batches = calibration if criterion == "taylor" else None
            self.importance = Importance(model, graph, criterion, batches, seed)
        self._moments: dict[str, Moments] | None = None
        self._images: dict[Format, tuple[list[Tensor], list[Batch]]] = {}
        self._local = threading.local()
        self._lock = threading.Lock()

    @property
    def device(self) -> torch.device:
        return next(iter(self.model.parameters())).device

    @property
    def workers(self) -> int:
        """Candidates that a process scores at a time: on a CPU one per core, each on one thread, so that a score does
        not depend on how many cores there are."""
        return torch.get_num_threads() if self.device.type == "cpu" else 1

    @property
    def moments(self) -> dict[str, Moments]:
        """Of the readers' inputs in the full network, over the calibration images."""
        with self._lock, one_thread():
            if self._moments is None:
                self._moments = collect_moments(self.model, self.graph, self.calibration)
        return self._moments

    def unit_scores(self) -> list[np.ndarray]:
        """The importance of each unit, one array per prunable group."""
        return [self.importance.unit_scores(i) for i, group in enumerate(self.graph.groups) if group.prunable]

    def build(self, widths: Sequence[int], compensate: bool | None = None) -> nn.Module:
        """A thin model of its own, with the full model's statistics, to be trained or saved.

        Args:
            compensate: instead of the score's own setting.
        """
        keep = self.importance.choose(widths)
        thin = slice_model(self.model, self.graph, keep)
        if self.compensate if compensate is None else compensate:
            changed = compensate_readers(self.model, self.graph, keep, self.moments)
            repaired = Skeleton(self.model, self.graph).fill(keep, changed)
            thin.load_state_dict(repaired.state_dict())
        return thin

    def __call__(self, widths: Sequence[int], share: float = 1.0) -> Metrics:
        """Score a candidate.

        Args:
            share: use only this share of the calibration and of the holdout batches, from the first on.
        """
        return self._evaluate(widths, share, self.format or Format())

    def _evaluate(self, widths: Sequence[int], share: float, format: Format) -> Metrics:
        with one_thread():
            calibration, holdout = self._prepared(format)
            model = self.candidate(widths, format)
            with format.autocast(self.device):
                recalibrate_bn(model, calibration[: _part(calibration, share)], self.momentum)
                return evaluate_model(model, holdout[: _part(holdout, share)])

    def candidate(self, widths: Sequence[int], format: Format) -> nn.Module:
        """The thin model in this thread's modules; good until the next call."""
        skeletons: dict[bool, Skeleton] = vars(self._local).setdefault("skeletons", {})
        if format.channels_last not in skeletons:
            with self._lock:
                skeletons[format.channels_last] = Skeleton(self.model, self.graph, format.channels_last)
        keep = self.importance.choose(widths)
        changed = compensate_readers(self.model, self.graph, keep, self.moments) if self.compensate else None
        return skeletons[format.channels_last].fill(keep, changed)

    def _prepared(self, format: Format) -> tuple[list[Tensor], list[Batch]]:
        """The images in this format, converted once and kept where there is room."""
        with self._lock:
            if format not in self._images:
                home = self._home(format)
                calibration = [format.convert(images.to(home)) for images, _ in self.calibration]
                holdout = [(format.convert(images.to(home)), labels) for images, labels in self.holdout]
                self._images = {format: (calibration, holdout)}  # one format at a time: memory is bounded
            return self._images[format]

    def _home(self, format: Format) -> torch.device:
        """The accelerator, where all images take less than half of its free memory, else the CPU."""
        if self.device.type != "cuda":
            return self.device
        values = sum(images.numel() for images, _ in (*self.calibration, *self.holdout))
        free, _ = torch.cuda.mem_get_info(self.device)
        fits = values * (2 if format.bfloat16 else 4) < free / 2
        return self.device if fits else torch.device("cpu")

    def prepare(self, examples: Sequence[Sequence[int]], latency: bool = False) -> dict[str, Any]:
        """Measure what the search needs to know once; `adopt` takes it, here or in another process.

        Args:
            examples: widths to measure on, typical ones of this search.
            latency: also fit a model of milliseconds.
        Returns:
            Plain numbers: the format with its speed, the full model's scores on the holdout images, latency.
        """
        facts: dict[str, Any] = {}
        if self.format is None:
            facts["format"] = self._choose_format(examples)
            self.adopt(facts)
        facts["full"] = self._full_scores()
        if latency:
            facts["latency"] = asdict(fit_latency(self.model, self.graph, self.importance))
        return facts

    def measure(self, candidates: Sequence[Sequence[int]]) -> tuple[float, list[float]]:
        """Milliseconds of one forward pass of one image: the full model's, and each candidate's."""
        models = [self.model, *(self.build(widths, compensate=False) for widths in candidates)]
        full, *times = measure_latency(models, self.graph.input_size, pick=min)
        return full, times

    def adopt(self, facts: dict[str, Any]) -> None:
        if "format" in facts:
            self.format = Format(**facts["format"]["chosen"])

    def _choose_format(self, examples: Sequence[Sequence[int]]) -> dict[str, Any]:
        with one_thread():
            speeds = time_formats(lambda f: self.candidate(examples[0], f), self.calibration[0][0][:32], self.device)
        safe = fastest_format({f: speed for f, speed in speeds.items() if not f.bfloat16})
        chosen, agreement = fastest_format(speeds), None
        if chosen.bfloat16:
            share = 1e-3  # one batch of each
            losses = [[self._evaluate(widths, share, f).loss for widths in examples] for f in (safe, chosen)]
            agreement = rank_correlation(*losses) if np.all(np.isfinite(losses)) else 0.0
            if agreement < SAME_RANKING:
                chosen = safe
        return {
            "chosen": asdict(chosen),
            "images_per_second": {str(f): round(speed, 1) for f, speed in speeds.items()},
            "rank_correlation": agreement,
        }

    def _full_scores(self) -> dict[str, float]:
        """The full network on the holdout images, with its own statistics and with recomputed ones."""
        format = self.format or Format()
        model = self.candidate(self.graph.widths, format)
        calibration, holdout = self._prepared(format)
        with one_thread(), torch.no_grad(), format.autocast(self.device):
            outputs = model(calibration[0][:1]).shape[1]
            own = evaluate_model(model, holdout)
        adapted = self._evaluate(self.graph.widths, 1.0, format)
        return {
            "classes": outputs,
            "top1": own.top1,
            "loss": own.loss,
            "adaptive_top1": adapted.top1,
            "adaptive_loss": adapted.loss,
        }

    def fingerprint(self) -> dict[str, object]:
        """Everything here that determines a score."""
        weights, images = hashlib.sha256(), hashlib.sha256()
        for name, tensor in named_tensors(self.model):
            weights.update(name.encode() + tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
        for batch_images, labels in (*self.calibration, *self.holdout):
            images.update(batch_images.contiguous().numpy().tobytes() + labels.numpy().tobytes())
        cuda = self.device.type == "cuda"
        return {
            "weights": weights.hexdigest()[:16],
            "images": images.hexdigest()[:16],
            "criterion": self.criterion,
            "momentum": self.momentum,
            "compensate": self.compensate,
            "score_seed": self.seed if self.criterion == "random" else None,
            "format": str(self._given_format) if self._given_format else "measured",
            "torch": torch.__version__,
            "device": torch.cuda.get_device_name(self.device) if cuda else self.device.type,
        }


def measure_stages(
    score: AdaptiveBNScore, widths: Sequence[int], test: Callable[[nn.Module], Metrics], compensate: bool
) -> tuple[nn.Module, dict[str, Metrics]]:
    """Prune, and tell what each step gives: the old statistics, recomputed ones and, if wanted, repaired readers.

    Returns:
        The pruned network after the last of these steps, and the metrics by the name of the step.
    """
    pruned = score.build(widths, compensate=False)
    metrics = {"vanilla": test(pruned)}
    metrics["adaptive"] = test(recalibrate_bn(pruned, score.calibration))
    if compensate:
        pruned = recalibrate_bn(score.build(widths, compensate=True), score.calibration)
        metrics["compensated"] = test(pruned)
    return pruned, metrics


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums of floating point numbers depend on how many threads share them, and scores must not."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _part(batches: Sequence[Any], share: float) -> int:
    return max(1, math.ceil(len(batches) * share - 1e-9))
