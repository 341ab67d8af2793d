"""Scoring, fine-tuning and measuring one sub-net."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate.utils import set_seed
from safetensors.torch import load_file, save_file
from torch import nn

from eagleeye_hf.data.image_set import ImageSet
from eagleeye_hf.data.pairs import TrainingImages
from eagleeye_hf.data.splits import Splits
from eagleeye_hf.evaluation.metrics import Metrics, evaluate_model
from eagleeye_hf.networks.running import Batch
from eagleeye_hf.networks.threads import one_thread
from eagleeye_hf.processes import alone
from eagleeye_hf.pruning.config import MatchConfig
from eagleeye_hf.search.candidate import Candidate
from eagleeye_hf.strategies.strategy import Strategy
from eagleeye_hf.study.dividing import quiet
from eagleeye_hf.study.journal import HOLDOUT, TEST, Finished
from eagleeye_hf.study.material import Material
from eagleeye_hf.study.scores import score_subnet
from eagleeye_hf.training.config import FinetuneConfig
from eagleeye_hf.training.finetune import finetune_model
from eagleeye_hf.training.match import FewSteps, match_teacher

MEMORY = 2 << 30
"""Bytes of decoded test images that are kept; where there are more, every sub-net's test decodes."""


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """How sub-nets are fine-tuned and measured."""

    finetune: FinetuneConfig
    match: MatchConfig
    max_steps: int | None
    seed: int
    num_workers: int
    folder: Path
    """For checkpoints of training, and the fine-tuned weights."""
    identity: Mapping[str, Any]
    """What else must be the same where training goes on."""


class Tuner:
    """Does all of that, in one process."""

    def __init__(self, material: Material, data: Splits, tuning: Tuning) -> None:
        self.material, self.data, self.tuning = material, data, tuning
        train: TrainingImages = data.train
        self.train = train if tuning.max_steps is None else FewSteps(train, tuning.max_steps)

    def __call__(self, candidate: Candidate) -> Finished:
        match = self._match if self.tuning.match.match_steps != 0 else None
        scores, seconds = score_subnet(self.material, candidate.strategy, match)
        started = time.perf_counter()
        tuned = self._finetune(candidate)
        seconds["fine-tuning"] = time.perf_counter() - started
        metrics = {TEST: self.measure_test(tuned), HOLDOUT: self._measure(tuned, self.material.holdout)}
        rounded = {name: round(value, 4) for name, value in seconds.items()}
        return Finished(candidate=candidate, scores=scores, tuned=metrics, seconds=rounded)

    def _finetune(self, candidate: Candidate) -> nn.Module:
        tuning, path = self.tuning, weights_path(self.tuning.folder, candidate.index)
        thin = self.material.build(candidate.strategy)
        if path.exists():  # killed between saving the weights and the journal's line
            thin.load_state_dict(load_file(path))
            return thin.to(self.material.score.device).eval()
        thin = self.material.recalibrate(thin, self.material.draws[0])
        checkpoint = tuning.folder / "training" / str(candidate.index)
        with alone() as accelerator:
            set_seed(tuning.seed)
            tuned = finetune_model(
                thin,
                self.train,
                tuning.finetune,
                teacher=self.material.model,
                accelerator=accelerator,
                checkpoint=checkpoint,
                identity=dict(tuning.identity) | {"strategy": list(candidate.strategy.to_dict().values())},
                num_workers=tuning.num_workers,
            )
        save_weights(tuned, path)
        shutil.rmtree(checkpoint, ignore_errors=True)
        return tuned.to(self.material.score.device)

    def _match(self, thin: nn.Module, strategy: Strategy) -> nn.Module:
        keep = self.material.score.choose_channels(strategy)
        with alone() as accelerator, quiet():
            set_seed(self.tuning.seed)
            return match_teacher(
                thin,
                self.material.model,
                self.material.graph,
                keep,
                self.data.train,
                self.tuning.match,
                removed_blocks=strategy.removed_blocks,
                accelerator=accelerator,
                num_workers=self.tuning.num_workers,
            )

    def _measure(self, network: nn.Module, batches: Iterator[Batch] | Sequence[Batch]) -> Metrics:
        with one_thread(), self.material.format.autocast(self.material.score.device):
            return evaluate_model(network, batches)

    def measure_test(self, network: nn.Module) -> Metrics:
        """On the test images."""
        return self._measure(network, self._test())

    def _test(self) -> Iterator[Batch] | Sequence[Batch]:
        test, size = self.data.test, self.material.graph.input_size
        if isinstance(test, ImageSet) and 4 * test.count() * size[0] * size[1] * size[2] <= MEMORY:
            return test.cached_batches()
        return test.batches(num_workers=self.tuning.num_workers, device=self.material.score.device)


def weights_path(folder: Path, index: int) -> Path:
    """Where a fine-tuned sub-net's weights lie."""
    return folder / "weights" / f"{index:05}.safetensors"


def save_weights(network: nn.Module, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".tmp")
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, part)
    part.replace(path)
