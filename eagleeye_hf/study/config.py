"""What a study is told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from eagleeye_hf.configs import Within, check_fields
from eagleeye_hf.errors import EagleEyeError

Count = Annotated[int, Within("[1, inf)")]
Comparator = Literal["random", "evolution", "global"]
COMPARATORS: tuple[Comparator, ...] = ("random", "evolution", "global")
EXTENSIBLE = ("subnets", "comparators", "examined")
"""Settings that may be others where a study goes on."""


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """How many sub-nets are scored and fine-tuned, and what their scores are worth in searches."""

    subnets: Annotated[int, Within("[3, inf)")] = 24
    """Random sub-nets per budget that are scored and fine-tuned, the uniform one among them; a finished study goes on
    with more."""
    max_steps: Count | None = None
    """Steps of each epoch of fine-tuning at most, every epoch on other images; None: all."""
    draws: Count = 2
    """Parts into which the calibration images are divided; scores are averaged over them."""
    comparators: tuple[Comparator, ...] = COMPARATORS
    """Methods of search of which the choice is fine-tuned beside the pool's uniform strategy."""
    examined: Annotated[int, Within("[0, inf)")] | None = None
    """Sub-nets per budget of which statistics, weights and scores on other numbers of images are looked at, at least
    two; 0: that part is left out; None: all."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.examined == 1:
            raise EagleEyeError("`examined` is 0 or at least 2, for one sub-net shows no spread; got 1")
