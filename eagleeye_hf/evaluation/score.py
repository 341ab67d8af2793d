"""The score of a candidate: thin, recompute BatchNorm, evaluate on the holdout images."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor, nn

from eagleeye_hf.channels.cut import named_tensors
from eagleeye_hf.channels.graph import ChannelGraph
from eagleeye_hf.errors import EagleEyeError
from eagleeye_hf.evaluation.batchnorm import batch_norms, recalibrate_bn
from eagleeye_hf.evaluation.config import FormatName
from eagleeye_hf.evaluation.format import Format
from eagleeye_hf.evaluation.images import ScoringImages
from eagleeye_hf.evaluation.layers import matched_layers
from eagleeye_hf.evaluation.matched import match_briefly
from eagleeye_hf.evaluation.memory import (
    PART,
    PARTS,
    SMALLEST_STEP,
    activation_bytes,
    affordable_threads,
    matching_parts,
    training_bytes,
)
from eagleeye_hf.evaluation.objective import Classification, Objective, Score, Seen
from eagleeye_hf.evaluation.preparation import Draws, Preparation
from eagleeye_hf.evaluation.prepare import prepare_scoring
from eagleeye_hf.evaluation.recorded import RecordedNetwork
from eagleeye_hf.networks.description import unwrap_model
from eagleeye_hf.networks.running import Batch, bytes_of, channels_last, device_of, in_float32
from eagleeye_hf.networks.threads import one_thread
from eagleeye_hf.pruning.builder import Builder
from eagleeye_hf.pruning.config import Criterion, ImportanceConfig
from eagleeye_hf.runtimes.alignment import measure_alignment
from eagleeye_hf.runtimes.config import LatencyConfig
from eagleeye_hf.runtimes.latency import Latency
from eagleeye_hf.runtimes.runtime import Runtime, find_runtime
from eagleeye_hf.runtimes.timing import StrategyTimer
from eagleeye_hf.strategies.strategy import Strategy, as_strategy

if TYPE_CHECKING:
    from accelerate import Accelerator

NO_MEMORY_TO_MATCH = (
    f"matching needs more than {PART:.0%} of the GPU's memory, even by {SMALLEST_STEP} images a step: score unmatched "
    "(`matched=0`; in a search `--matched False`), or take a larger GPU"
)
NAMED_FORMATS = {
    "float32": Format(channels_last=True),
    "bfloat16": Format(channels_last=True, bfloat16=True),
}


class AdaptiveBNScore:
    """Scores strategies by adaptive BatchNorm evaluation (paper, section 3.3).

    Beside the model and the images that are given this takes the images once in the chosen format and, per thread,
    `thread_bytes`.

    Args:
        calibration: batches of training images that recompute the statistics, and by which channels are chosen and
            layers repaired; their labels are not used but by `criterion="taylor"`.
        holdout: batches of other training images, used only to score.
        criterion: which channels stay, as in `choose_channels`.
        momentum: as in `recalibrate_bn`.
        compensate: repair the readers of removed channels before scoring. `"auto"`: where, without it, typical
            candidates are at chance.
        format: memory format and precision. `"auto"`: what the device is made for, the same at every start;
            `"measured"`: the fastest; both with float32 where bfloat16 ranks otherwise.
        objective: what ranks, and what is reported.
        seed: of the criterion `random`.
        latency: where milliseconds are measured.
        threads: as `scoring_threads` in `ScoringConfig`.
    """

    def __init__(
        self,
        model: nn.Module,
        graph: ChannelGraph,
        calibration: Sequence[Batch],
        holdout: Sequence[Batch],
        *,
        criterion: Criterion = ImportanceConfig.criterion,
        momentum: float | None = None,
        compensate: bool | Literal["auto"] = False,
        format: Format | FormatName = "auto",
        objective: Objective | None = None,
        seed: int = 0,
        latency: LatencyConfig | None = None,
        threads: int | None = None,
    ) -> None:
        model = unwrap_model(model)
        batch_norms(model)  # refuses a network without any
        self.model, self.graph = model, graph
        self.criterion, self.momentum, self.seed = criterion, momentum, seed
        self.wanted_compensation, self.compensate = compensate, compensate is True
        self.wanted_format = format
        self.format: Format | None = format if isinstance(format, Format) else NAMED_FORMATS.get(format)
        self.objective: Objective = objective or Classification()
        self.device = device_of(model)
        self.builder = Builder(model, graph, calibration, criterion, seed)
        self.images = ScoringImages(calibration, holdout, self.device)
        self._latency = latency or LatencyConfig()
        self._threads = threads
        self.runtime: Runtime = find_runtime(self._latency, self.device)
        self._timer = StrategyTimer(model, graph, self.builder.importance, self.runtime)
        self.recorded = False
        """Whether candidates are scored in the full network's shapes, from recorded passes."""
        self.network: RecordedNetwork | None = None

    @property
    def workers(self) -> int:
        """Candidates that a process scores at a time: on a CPU one per core, as far as memory goes, each on one thread,
        so that a score does not depend on how many cores there are."""
        if self.device.type != "cpu":
            return 1
        wanted = self._threads or torch.get_num_threads()
        return min(wanted, affordable_threads(self.thread_bytes)) if wanted > 1 else 1

    @cached_property
    def thread_bytes(self) -> int:
        """What a candidate takes while it is scored: weights, and the activations of the largest batch."""
        batch = self.images.largest_batch
        weights = sum(tensor.numel() for _, tensor in named_tensors(self.model))
        return batch * activation_bytes(self.model, self.graph.input_size) + 4 * weights

    def unit_scores(self, accelerator: Accelerator | None = None) -> list[np.ndarray]:
        """The importance of each unit, one array per prunable group; the main process's for all of an accelerator."""
        self.builder.importance.prepare(accelerator)
        groups = enumerate(self.graph.groups)
        return [self.builder.importance.unit_scores(i) for i, group in groups if group.prunable]

    def build(self, strategy: Strategy | Sequence[int], compensate: bool | None = None) -> nn.Module:
        """A thin model of its own, with the full model's statistics, to be trained or saved.

        Args:
            strategy: or its widths alone.
            compensate: instead of the score's own setting.
        """
        return self.builder.build(as_strategy(strategy), self.compensate if compensate is None else compensate)

    def choose_channels(self, strategy: Strategy | Sequence[int]) -> dict[str, Tensor]:
        """Those that stay in what `build` gives, as `choose_channels` tells them."""
        keep = self.builder.importance.choose(as_strategy(strategy).widths)
        return {name: torch.from_numpy(kept) for name, kept in keep.items()}

    def __call__(
        self,
        strategy: Strategy | Sequence[int],
        fraction: float = 1.0,
        before: Seen | None = None,
        matched: int = 0,
    ) -> Score:
        """Score a candidate.

        Args:
            strategy: or its widths alone.
            fraction: use only this fraction of the calibration and of the holdout batches, from the first on.
            before: what is known of it: of the images only those that follow are looked at, the statistics recomputed
                from those alone, and the score is that of all together.
            matched: score it, on all images, once its layers have been trained without labels for so many steps on the
                calibration images, to give what the full network's give.
        """
        try:
            if matched:
                return self._score_matched(as_strategy(strategy), matched, self.format or Format())
            return self.score_part(as_strategy(strategy), fraction, self.format or Format(), before)
        except RuntimeError:  # maybe there was no memory: give back what the recorded passes hold
            self.close_network()
            raise

    def score_part(self, strategy: Strategy, fraction: float, format: Format, before: Seen | None = None) -> Score:
        after, size = before.fraction if before else 0.0, strategy.image_size
        calibration, holdout = self.images.take(format, fraction, after, size)
        if self.momentum is not None:  # a moving average forgets slowly: it needs the batches before, too
            calibration, _ = self.images.take(format, fraction, size=size)
        if before and not holdout:
            return before.score
        found = self._score_images(strategy, calibration, holdout, format)
        return before.score.join(found) if before else found

    def _score_matched(self, strategy: Strategy, steps: int, format: Format) -> Score:
        """The better one of before and after: training goes back to its start, too, where that was better."""
        if self.matching_parts is None:
            raise EagleEyeError(NO_MEMORY_TO_MATCH)
        before = self.score_part(strategy, 1.0, format)
        with self._matching, one_thread():
            images, _ = self.images.take(format)
            seen, holdout = self.images.take(format, size=strategy.image_size)
            match = partial(
                match_briefly,
                full=self.model,
                images=images,
                seen=seen,
                steps=steps,
                parts=self.matching_parts,
                autocast=partial(format.autocast, self.device),
            )
            try:
                network = (self._match_recorded if self.recorded else self._match_thin)(strategy, seen, match, format)
                with format.autocast(self.device):
                    after = self.objective.measure(network, holdout)
            except FloatingPointError:  # it diverged
                after = before
        return replace(after if after.loss < before.loss else before, matched=steps)

    def _match_thin(
        self, strategy: Strategy, seen: Sequence[Tensor], match: Callable[..., object], format: Format
    ) -> nn.Module:
        thin = in_float32(self.builder.build(strategy, self.wanted_compensation is not False))
        thin.requires_grad_(True)
        if format.channels_last:
            thin = channels_last(thin)
        with format.autocast(self.device):
            recalibrate_bn(thin, seen)
        keep = self.choose_channels(strategy)
        match(thin, kept=matched_layers(self.model, self.graph, keep, strategy.removed_blocks))
        with format.autocast(self.device):
            return recalibrate_bn(thin, seen, self.momentum)

    def _match_recorded(
        self, strategy: Strategy, seen: Sequence[Tensor], match: Callable[..., object], format: Format
    ) -> nn.Module:
        """In the full network's shapes: for thin ones a GPU's library looks for kernels, forward and backward."""
        network = self._open_network(format)
        network.fill(*self.builder.choose(strategy, self.wanted_compensation is not False))
        network.recalibrate(seen, None)
        layers = matched_layers(self.model, self.graph, {}, strategy.removed_blocks)
        with network.trained() as mask:
            match(network.network, kept=network.channels_of(layers), mask=mask)
        network.recalibrate(seen, self.momentum)
        return network

    @cached_property
    def matching_parts(self) -> int | None:
        """Steps that a batch of calibration images makes where candidates are matched; None: no memory for that."""
        return matching_parts(self._training_bytes, self._calibration_batch, self.images.num_bytes, self.device)

    @cached_property
    def _training_bytes(self) -> int:
        return training_bytes(self.model, self.graph.input_size)

    @property
    def _calibration_batch(self) -> int:
        return max(len(images) for images, _ in self.images.calibration)

    @cached_property
    def _matching(self) -> threading.BoundedSemaphore:
        """Lets in as many candidates as there is memory to match at a time."""
        needed = int(self._calibration_batch / PARTS * self._training_bytes)
        return threading.BoundedSemaphore(affordable_threads(needed) if self.device.type == "cpu" else 1)

    def _score_images(
        self, strategy: Strategy, calibration: Sequence[Tensor], holdout: Sequence[Batch], format: Format
    ) -> Score:
        with one_thread():
            if self.recorded:
                return self._score_recorded(strategy, calibration, holdout, format)
            model = self.builder.fill(strategy, self.compensate, format.channels_last)
            with format.autocast(self.device):
                own = self.objective.measure(model, holdout) if is_whole(strategy, self.graph) else None
                recalibrate_bn(model, calibration, self.momentum)
                return _better(self.objective.measure(model, holdout), own)

    def _score_recorded(
        self, strategy: Strategy, calibration: Sequence[Tensor], holdout: Sequence[Batch], format: Format
    ) -> Score:
        network = self._open_network(format).fill(*self.builder.choose(strategy, self.compensate))
        with format.autocast(self.device):
            own = self.objective.measure(network, holdout) if is_whole(strategy, self.graph) else None
            network.recalibrate(calibration, self.momentum)
            return _better(self.objective.measure(network, holdout), own)

    def _open_network(self, format: Format) -> RecordedNetwork:
        if self.network is None or self.network.format != format:
            self.close_network()
            self.network = RecordedNetwork(self.model, self.graph, format)
        return self.network

    def close_network(self) -> None:
        """Give back what recorded passes hold: they and their network know each other."""
        if self.network is not None:
            self.network.passes.clear()
        self.network = None

    def measure_alignment(self) -> int:
        """The multiple of channels at which the runtime is fast, on one thread: so it does not depend on how processes
        divide the cores, and a search's result neither."""
        return measure_alignment(find_runtime(replace(self._latency, threads=1), self.device))

    def prepare(self, examples: Sequence[Strategy], draws: Draws | None = None) -> Preparation:
        """Measure what the search needs to know once; `adopt` takes it, here or in another process.

        Args:
            examples: strategies to measure on, typical ones of this search.
            draws: how it draws; also fit a model of milliseconds to such.
        """
        return prepare_scoring(self, examples, draws)

    def adopt(self, prepared: Preparation) -> None:
        """Score as another process has prepared it.

        Raises:
            EagleEyeError: its milliseconds are of another runtime, device or number of threads.
        """
        if prepared.latency is not None and prepared.latency.place != self.runtime.place:
            raise EagleEyeError(
                f"the search's milliseconds are of {prepared.latency.place}, and here they would be of "
                f"{self.runtime.place}: go on with the same `runtime`, `threads`, `latency_batch` and `int8`, or start "
                "anew in another folder"
            )
        if prepared.compensate is not None:
            self.compensate = prepared.compensate
        if prepared.format is not None:
            self.format = prepared.format.chosen
        self.recorded = prepared.recorded

    def measure_latency(self, strategies: Sequence[Strategy]) -> list[Latency]:
        """Milliseconds of one forward pass, each beside the full model."""
        return self._timer.measure(strategies)

    def fingerprint(self) -> dict[str, object]:
        """Everything here that determines a score."""
        weights = hashlib.sha256()
        for name, tensor in named_tensors(self.model):
            weights.update(name.encode() + bytes_of(tensor))
        cuda = self.device.type == "cuda"
        return {
            "weights": weights.hexdigest()[:16],
            "images": self.images.fingerprint(),
            "objective": _name_objective(self.objective),
            "criterion": self.criterion,
            "momentum": self.momentum,
            "compensate": self.wanted_compensation,
            "score_seed": self.seed if self.criterion == "random" else None,
            "format": str(self.wanted_format),
            "torch": torch.__version__,
            "device": torch.cuda.get_device_name(self.device) if cuda else self.device.type,
        }


def _better(found: Score, own: Score | None) -> Score:
    return found if own is None or found.loss <= own.loss else own


def _name_objective(objective: Objective) -> str:
    """As far as an objective tells itself apart: its kind, what it ranks by and reports, and its functions."""
    functions = [getattr(value, "__qualname__", "") for value in vars(objective).values() if callable(value)]
    return ", ".join([type(objective).__qualname__, objective.ranks, objective.reports, *functions])


def is_whole(strategy: Strategy, graph: ChannelGraph) -> bool:
    """Whether only the image is smaller: the network's own statistics may suit it better than recomputed ones."""
    whole = strategy.widths == graph.widths and not strategy.removed_blocks
    return whole and strategy.image_size not in (None, graph.image_size)
