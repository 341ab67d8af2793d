"""What profiles of all runtimes have in common."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from eagleeye_hf.runtimes.runtime import Weights

PADDED = (1, 4, 8, 16, 32, 64)
"""Runtimes fill channels up to multiples of one of these."""


def low_quantile(times: np.ndarray) -> np.ndarray:
    """Per operator, of shape `(rounds, operators)`: what a fifth of the rounds went below. Less disturbed by other work
    than the mean, less of a lucky chance than the minimum, which adds up over operators."""
    return np.sort(times, axis=0)[len(times) // 5]


def assign_weights(
    multiplying: Sequence[bool],
    shapes: Sequence[tuple[int, ...] | None] | None,
    weights: Weights,
) -> list[str]:
    """Which weight each operator of a profile multiplies with; an empty text where none.

    Both are in the order of execution; where a runtime has changed the order, shapes tell.

    Args:
        multiplying: per operator, whether it has a weight.
        shapes: of the weights as the runtime tells them, filled up or not; None where it does not tell.
        weights: names and shapes of the network's.
    """
    pending = list(weights)
    found = []
    for place, multiplies in enumerate(multiplying):
        if not multiplies or not pending:
            found.append("")
            continue
        told = shapes[place] if shapes else None
        first = next((k for k, (_, shape) in enumerate(pending) if told is None or _alike(shape, told)), 0)
        found.append(pending.pop(first)[0])
    return found


def _alike(shape: tuple[int, ...], told: tuple[int, ...]) -> bool:
    if len(shape) != len(told) or shape[2:] != told[2:]:
        return False
    return all(
        any(-(-size // multiple) * multiple == other for multiple in PADDED)
        for size, other in zip(shape[:2], told[:2], strict=True)
    )
