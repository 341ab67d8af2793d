"""How many images each stage has, and how many candidates come to the last."""

from __future__ import annotations

import math
from collections.abc import Sequence

from eagleeye_hf.evaluation.preparation import Pace

IMAGES = 2.0
"""Times that the images of a first stage take at least of what a candidate costs besides."""
FINALISTS = 8
"""The last stage has a multiple of so many candidates, for it comes at once and processes share it."""


def size_stages(stages: Sequence[float], pace: Pace | None) -> tuple[float, ...]:
    """Fractions of the images, on a fast device larger than in the config: where a candidate's own cost (its weights,
    its launches) takes longer than its images, more images cost little. The first is doubled until they suffice, and
    the stages between move along with it.
    """
    first = stages[0]
    if pace is None or first == 1:
        return tuple(stages)
    while first < 1 and first * pace.images < IMAGES * pace.candidate:
        first *= 2
    if first >= 1:
        return (1.0,)
    stretch = math.log(first) / math.log(stages[0])
    return tuple(fraction**stretch for fraction in stages)


def count_finalists(num: int, promote: float, last: int) -> int:
    """Of so many candidates, where this is the last stage."""
    return math.ceil(promote**last * num / FINALISTS) * FINALISTS
