"""What a dataset leaves open: which of its images are for testing, and how many are set aside."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from eagleeye_hf.data.holdout import proportional_order
from eagleeye_hf.data.images import content_key, read_bytes
from eagleeye_hf.data.labels import MISSING
from eagleeye_hf.data.rows import MapRows

TESTED = 0.2
"""Part of the images that is for testing where a dataset has no test split."""
LARGEST_PART = 0.2
"""Of the training images that calibrate, or that score, where their number is left open."""
CALIBRATING, SCORING = 1024, 2048
"""How many, in larger datasets."""
UNEVEN = 5
"""Times as many images of one class as of another, from which on it is said."""


def part_off_test(rows: MapRows, classes: np.ndarray | None = None) -> tuple[MapRows, MapRows]:
    """Divide images into those for training and a fifth for testing, classes in proportion; always the same ones, so
    that no seed and no network ever chooses by them.

    Args:
        classes: of the images, where the labels are not the dataset's own.
    """
    classes = rows.classes() if classes is None else classes
    order = [int(place) for place in proportional_order(classes, seed=0) if classes[place] != MISSING]
    test = np.sort(np.array(order[: round(TESTED * len(order))], dtype=np.int64))
    return rows.subset(np.setdiff1d(np.arange(len(rows)), test)), rows.subset(test)


def content_keys(rows: MapRows) -> frozenset[int]:
    """What tells these images apart from others, among which there may be copies of them."""
    keys = set()
    for image, _ in rows:
        try:
            keys.add(content_key(read_bytes(image)))
        except (OSError, TypeError):  # a missing file or image: whoever reads it next reports it
            continue
    return frozenset(keys)


def choose_sizes(total: int | None, calibration: int | None, holdout: int | None) -> tuple[int, int]:
    """How many images calibrate and how many score: the numbers given; where left open, 1,024 and 2,048, or a fifth of
    the training images each where that is less.

    Args:
        total: training images; None where a stream does not tell.
    """
    most = max(SCORING, CALIBRATING) if total is None else max(1, int(LARGEST_PART * total))
    return (
        min(CALIBRATING, most) if calibration is None else calibration,
        min(SCORING, most) if holdout is None else holdout,
    )


def describe_imbalance(labels: np.ndarray, names: Sequence[str]) -> list[str]:
    """A note where some classes have far fewer training images than others, or none."""
    counts = np.bincount(labels[(labels >= 0) & (labels < len(names))], minlength=len(names))
    least, most = int(counts.argmin()), int(counts.argmax())
    if not counts[most] or counts[most] < UNEVEN * counts[least] or len(names) < 2:
        return []
    return [
        f"classes are uneven: {counts[most]:,} training images of {names[most]}, {counts[least]:,} of {names[least]}; "
        "top-1 counts images, so large classes weigh more"
    ]
