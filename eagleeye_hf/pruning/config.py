"""How a network is pruned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from eagleeye_hf.configs import check_fields

Criterion = Literal["l1", "l2", "bn_scale", "geometric_median", "taylor", "random"]


@dataclass(frozen=True, kw_only=True)
class ImportanceConfig:
    """Which channels stay."""

    criterion: Criterion = "l1"
    """Importance of a channel: the largest stay."""

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class RepairConfig:
    """What is repaired without labels."""

    compensate: bool = True
    """Repair the layers that read removed channels by least squares."""

    def __post_init__(self) -> None:
        check_fields(self)
