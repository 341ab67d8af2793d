"""Which training images are set aside: distinct ones, every class in proportion."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from itertools import islice

import numpy as np

from eagleeye_hf.data.images import Row, content_key, read_bytes
from eagleeye_hf.data.labels import MISSING
from eagleeye_hf.data.rows import MapRows, StreamRows
from eagleeye_hf.errors import EagleEyeError

OVERSAMPLE = 3
"""Rows of a stream to choose from, for each that is chosen."""


def hold_out(
    name: str, rows: MapRows | StreamRows, num: int, seed: int, excluded: frozenset[int] = frozenset()
) -> tuple[list[Row], frozenset[int], set[int]]:
    """Choose distinct images; the first ones have the classes in proportion too.

    Args:
        excluded: content keys of images that must not be among them.
    Returns:
        The rows with their bytes, their content keys, and their positions where there is random access.
    Raises:
        EagleEyeError: there are too few distinct images.
    """
    if not num:
        return [], frozenset(), set()
    total = rows.num_rows if isinstance(rows, StreamRows) else len(rows)
    if total is not None and total <= num:
        raise EagleEyeError(
            f"`dataset={name}` has {total} training images; "
            f"`calibration_images` and `holdout_images` ask for {num} of them"
        )
    if isinstance(rows, StreamRows):
        drawn = list(islice(rows.rows(seed), OVERSAMPLE * num))
        order = proportional_order(np.array([MISSING if label is None else label for _, label in drawn]), seed)
        candidates: Iterable[tuple[int, Row]] = ((int(i), drawn[i]) for i in order)
    else:
        candidates = ((int(i), rows[i]) for i in proportional_order(rows.labels(), seed))
    held: dict[int, Row] = {}
    positions: set[int] = set()
    for position, (image, label) in candidates:
        if label is None:  # whoever reads it next reports it
            continue
        try:
            data = read_bytes(image)
        except (OSError, TypeError):  # a missing file or image, likewise
            continue
        positions.add(position)
        key = content_key(data)
        if key not in excluded:
            held.setdefault(key, ({"bytes": data, "path": image["path"]}, label))
        if len(held) == num:
            return list(held.values()), frozenset(held), positions
    raise EagleEyeError(
        f"`dataset={name}` has only {len(held)} distinct training images; "
        f"`calibration_images` and `holdout_images` ask for {num} of them"
    )


def proportional_order(labels: np.ndarray, seed: int) -> np.ndarray:
    """A random order of which every beginning holds the classes in proportion, as far as whole images can."""
    random = np.random.default_rng(seed)
    place = np.empty(len(labels))
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        place[members] = (np.arange(len(members)) + random.random()) / len(members)
    return np.argsort(place, kind="stable")


def warn_of_missing_classes(held: Sequence[Row], label_names: Sequence[str]) -> None:
    """Say which classes the holdout images can't score."""
    present = {label for _, label in held}
    missing = [name for number, name in enumerate(label_names) if number not in present]
    if missing:
        names = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        warnings.warn(
            f"`holdout_images={len(held)}` has no image of {len(missing)} of the {len(label_names)} classes ({names}), "
            "so the scores say nothing about them; raise `holdout_images`",
            stacklevel=3,
        )
