"""From the labels of one split to the numbers of a model's outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from eagleeye_hf.errors import EagleEyeError

MISSING = -(2**31)
"""Stands for a label that is not there."""
SHOWN = 5
"""Names that a message lists."""


@dataclass(frozen=True, kw_only=True)
class Labels:
    """How the labels of one split become numbers."""

    num_classes: int
    texts: Mapping[str, int] | None = None
    """Output per text, where labels are names."""
    order: tuple[int, ...] | None = None
    """Output per number of the dataset, where it lists the same classes in another order."""

    def number(self, label: Any) -> int | None:
        """The output that a label stands for, not yet checked for its range; None where the label is missing.

        Raises:
            EagleEyeError: it is no known name, and no whole number.
        """
        if label is None or label != label or (isinstance(label, str) and not label):
            return None
        if isinstance(label, str) and self.texts is not None:
            found = self.texts.get(label, self.texts.get(plain(label)))
            if found is None:
                raise EagleEyeError(
                    f"an image has the label {label!r}, which is none of the classes {listed(list(self.texts))}; give "
                    "their names as the dataset spells them, in the order of the model's outputs, with `label_names`"
                )
            return found
        number = whole_number(label)
        if number is None:
            raise EagleEyeError(
                f"an image has the label {label!r}, which is neither a whole number nor a name; "
                "name another column with `label_column`"
            )
        return self.order[number] if self.order is not None and 0 <= number < len(self.order) else number

    def checked(self, label: Any) -> int | None:
        """The same, within the range of the outputs.

        Raises:
            EagleEyeError: no output stands for the label.
        """
        number = self.number(label)
        if number is not None and not 0 <= number < self.num_classes:
            raise EagleEyeError(f"an image has the label {label}; {expected(self.num_classes, number)}")
        return number

    def numbers(self, column: pa.ChunkedArray) -> np.ndarray:
        """Those of a whole column, not yet checked for their range; `MISSING` where there is none."""
        values = column.to_pylist()
        numbers = {value: self.number(value) for value in set(values)}
        found = (numbers[value] for value in values)
        return np.array([MISSING if number is None else number for number in found], dtype=np.int64)


def whole_number(label: Any) -> int | None:
    """The integer that a truth value, a number or a text of digits exactly stands for, if any."""
    try:
        return int(label) if float(label).is_integer() else None
    except (TypeError, ValueError):
        return None


def check_labels(name: str, split: str, labels: np.ndarray, num_classes: int) -> None:
    """Refuse a split without labels, and labels that no output stands for."""
    known = labels[labels != MISSING]
    if unlabelled(labels):
        raise EagleEyeError(
            f"`dataset={name}`: the split `{split}` is unlabelled, since all of its {len(labels)} labels are missing "
            "or -1; use a split with labels, or name the column that holds them with `label_column`"
        )
    if len(known) and not 0 <= known.min() <= known.max() < num_classes:
        raise EagleEyeError(
            f"`dataset={name}` has labels from {known.min()} to {known.max()}; "
            f"{expected(num_classes, known.min())} (split `{split}`)"
        )


def unlabelled(labels: np.ndarray) -> bool:
    """Whether no image of a split has a label."""
    return bool(len(labels)) and bool(np.isin(labels, (MISSING, -1)).all())


def expected(num_classes: int, lowest: int) -> str:
    """Which labels there may be, for a message."""
    hint = "; -1 usually stands for an image without label: leave such images or such a split out"
    return f"with {num_classes} classes they run from 0 to {num_classes - 1}{hint if lowest == -1 else ''}"


def plain(text: str) -> str:
    """A name without what spellings differ in: case, underscores and spaces."""
    return " ".join(text.casefold().replace("_", " ").split())


def listed(names: Sequence[str]) -> str:
    """The first names, for a message."""
    return ", ".join(map(str, names[:SHOWN])) + (", ..." if len(names) > SHOWN else "")
