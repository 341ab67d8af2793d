"""How many images each stage has, and how many candidates come to the last."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from eagleeye_hf.evaluation.preparation import Pace

T = TypeVar("T")

FINALISTS = 8
"""The last stage has a multiple of so many candidates, for all come at once and processes share them."""
WIDER = 3
"""Times as many are trained for a few steps first, for before training the best of a kind is hard to tell."""
TRAINED_AT = 2
"""As many are trained as would come to this stage."""
STEPS = (16, 64)
"""Steps without labels before a candidate is scored, for those that are tried and for the last ones of them."""
STEP = 0.08
"""What such a step takes, in scorings on all images."""


@dataclass(frozen=True)
class Stage:
    """How candidates are scored there."""

    fraction: float
    """Of the images."""
    steps: int = 0
    """Those without labels that a candidate is trained first."""
    width: int = 0
    """Where all come at once, at the end of a search: times as many as at the last stage. 0: they come wave by wave."""


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


def list_stages(fractions: Sequence[float], matched: bool) -> tuple[Stage, ...]:
    """With `matched`, candidates are trained before they are scored at the last stage, and before that one three times
    as many for fewer steps."""
    if len(fractions) == 1 and not matched:
        return (Stage(fractions[0]),)
    waves = map(Stage, fractions[:-1] or fractions)
    few, more = STEPS
    return (*waves, Stage(1.0, few, WIDER), Stage(1.0, more, 1)) if matched else (*waves, Stage(1.0, width=1))


def count_waves(stages: Sequence[Stage]) -> int:
    """The stages to which candidates come wave by wave; the others follow."""
    return sum(not stage.width for stage in stages)


def work_of(stages: Sequence[Stage], num: int, promote: float) -> list[float]:
    """Per stage: what it takes where so many candidates are at the first, in scorings of one on all images."""
    work, seen = [], 0.0
    for stage, count in zip(stages, candidates_of(stages, num, promote), strict=True):
        work.append(count * (stage.fraction + STEP * stage.steps if stage.steps else stage.fraction - seen))
        seen = stage.fraction
    return work


def candidates_of(stages: Sequence[Stage], num: int, promote: float) -> list[int]:
    """Per stage: how many candidates come to it where so many are at the first."""
    finalists = min(num, count_finalists(num, promote, stages))
    counts = []
    for number, stage in enumerate(stages):
        if not stage.width:
            counts.append(count_promoted(num, promote, number))
        elif stage.width > 1 and num <= finalists:  # all are among the last
            counts.append(0)
        else:
            counts.append(min(num, finalists * stage.width))
    return counts


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


def count_finalists(num: int, promote: float, stages: Sequence[Stage]) -> int:
    """The same where it is the last one; as many are trained, however many stages there are."""
    step = TRAINED_AT if stages[-1].steps else count_waves(stages)
    return -(-count_promoted(num, promote, step) // FINALISTS) * FINALISTS
