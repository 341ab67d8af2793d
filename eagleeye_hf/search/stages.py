"""How many images each stage has, and how many candidates come to the last."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

from eagleeye_hf.evaluation.preparation import Pace

T = TypeVar("T")

FINALISTS = 8
"""The last stage has a multiple of so many candidates, for it comes at once and processes share it."""
TRAINED = 5.0
"""What the training of a candidate takes, in scorings on all images: two for each pass over the calibration images,
which are one for large images and four for small ones."""


def size_stages(stages: Sequence[float], pace: Pace | None) -> tuple[float, ...]:
    """Fractions of the images, on a fast device larger than in the config: where a candidate's own cost (its weights,
    its launches) takes longer than its images, more images cost little. The first is doubled until they take as
    long, and the stages between move along with it.
    """
    first = stages[0]
    if pace is None or first == 1:
        return tuple(stages)
    while first < 1 and first * pace.images < pace.candidate:
        first *= 2
    if first >= 1:
        return (1.0,)
    stretch = math.log(first) / math.log(stages[0])
    return tuple(fraction**stretch for fraction in stages)


def with_matching(stages: Sequence[float]) -> tuple[float, ...]:
    """Where the last stage trains before it scores: not all candidates come to it."""
    return (1.0, 1.0) if len(stages) == 1 else tuple(stages)


def interleave(ranked: Sequence[T], kinds: Sequence[str]) -> list[T]:
    """The best of each kind, then the second of each, and so on, in each round in their order.

    Args:
        ranked: the best first.
        kinds: of each.
    """
    rounds: dict[str, int] = {}
    turns = []
    for place, kind in enumerate(kinds):
        rounds[kind] = rounds.get(kind, 0) + 1
        turns.append((rounds[kind], place))
    return [ranked[place] for _, place in sorted(turns)]


def count_promoted(num: int, promote: float, stage: int) -> int:
    """How many of so many candidates come to a stage."""
    return math.ceil(promote**stage * num - 1e-9)


def count_finalists(num: int, promote: float, last: int) -> int:
    """The same where it is the last one."""
    return -(-count_promoted(num, promote, last) // FINALISTS) * FINALISTS
