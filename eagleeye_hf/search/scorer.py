"""What a search needs of whatever scores its candidates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from eagleeye_hf.errors import EagleEyeError
from eagleeye_hf.evaluation.objective import Score, Seen
from eagleeye_hf.evaluation.preparation import Draws, Preparation
from eagleeye_hf.runtimes.latency import Latency
from eagleeye_hf.strategies.strategy import Strategy

if TYPE_CHECKING:
    from accelerate import Accelerator


@runtime_checkable
class Scorer(Protocol):
    """Scores strategies; `AdaptiveBNScore` is one, `FunctionScorer` makes one of a function."""

    @property
    def workers(self) -> int:
        """Candidates that one process scores at a time, each in a thread of its own."""

    def __call__(
        self, strategy: Strategy, fraction: float = 1.0, before: Seen | None = None, matched: int = 0
    ) -> Score:
        """The score on this fraction of the images, of which those of `before` need not be looked at again.

        With `matched`, where `prepare` tells that it can: on all images, after so many steps without labels.

        A loss that is not finite, or a FloatingPointError, is recorded as this candidate's failure. Any RuntimeError
        or ArithmeticError else ends the search, for the device is at fault; one that tells of a lack of memory does so
        after a second try.
        """

    def measure_alignment(self) -> int | None:
        """The multiple of channels at which the runtime is fast; None where that can't be measured."""

    def prepare(self, examples: Sequence[Strategy], draws: Draws | None = None) -> Preparation:
        """Measure what is needed once per search; called in the main process, in the first life of a search.

        Args:
            examples: strategies like those that the search will score.
            draws: how the search draws, where its budget bounds milliseconds.
        """

    def adopt(self, prepared: Preparation) -> None:
        """Take what `prepare` found; called in every process, in every life."""

    def unit_scores(self, accelerator: Accelerator | None = None) -> list[np.ndarray] | None:
        """The importance of each unit, one array per prunable group, where channels can be ranked across groups.

        Args:
            accelerator: where given, every process of it calls this, and all get the same.
        """

    def measure_latency(self, strategies: Sequence[Strategy]) -> list[Latency]:
        """Milliseconds of each; an empty list where they can't be measured."""


class FunctionScorer:
    """Ranks strategies by any function of them and a fraction of the images, always from the first image on:
    `FunctionScorer(lambda strategy, fraction: Score(...))`."""

    workers = 1

    def __init__(self, function: Callable[[Strategy, float], Score]) -> None:
        self.function = function

    def __call__(
        self, strategy: Strategy, fraction: float = 1.0, before: Seen | None = None, matched: int = 0
    ) -> Score:
        return self.function(strategy, fraction)

    def measure_alignment(self) -> int | None:
        return None

    def prepare(self, examples: Sequence[Strategy], draws: Draws | None = None) -> Preparation:
        if draws is not None:
            raise EagleEyeError("a budget of milliseconds needs a scorer that measures them, as AdaptiveBNScore does")
        return Preparation()

    def adopt(self, prepared: Preparation) -> None:
        """There is nothing to take."""

    def unit_scores(self, accelerator: Accelerator | None = None) -> list[np.ndarray] | None:
        return None

    def measure_latency(self, strategies: Sequence[Strategy]) -> list[Latency]:
        return []


def check_scorer(score: object) -> None:
    """
    Raises:
        EagleEyeError: something of `Scorer` is missing.
    """
    if not isinstance(score, Scorer):
        needed = ["__call__", "adopt", "measure_alignment", "measure_latency", "prepare", "unit_scores", "workers"]
        missing = [name for name in needed if not hasattr(score, name)]
        raise EagleEyeError(
            f"`score` ({type(score).__name__}) lacks {', '.join(missing)} of a `Scorer`; "
            "make one of a plain function with `FunctionScorer`"
        )
