"""How fast candidates are scored."""

from __future__ import annotations

import time
from collections.abc import Callable

from eagleeye_hf.evaluation.objective import Score
from eagleeye_hf.evaluation.preparation import Pace
from eagleeye_hf.strategies.strategy import Strategy

TURNS = 5


def measure_pace(score: Callable[[Strategy, float], Score], example: Strategy) -> Pace:
    """From the fastest of several turns on few images and on many, which tell what a candidate costs besides."""
    few, many = 1e-3, 1.0
    seconds, images = [], []
    for fraction in (few, many):
        images.append(score(example, fraction).num_images)  # what is done once is done
        turns = []
        for _ in range(TURNS):
            started = time.perf_counter()
            score(example, fraction)
            turns.append(time.perf_counter() - started)
        seconds.append(min(turns))
    each = max(0.0, seconds[1] - seconds[0]) / max(1, images[1] - images[0])
    return Pace(candidate=max(0.0, seconds[0] - each * images[0]), images=each * images[1])
