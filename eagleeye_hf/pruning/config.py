"""How a network is pruned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from eagleeye_hf.configs import Within, check_fields

Criterion = Literal["l1", "l2", "bn_scale", "geometric_median", "taylor", "reconstruction", "random"]


@dataclass(frozen=True, kw_only=True)
class ImportanceConfig:
    """Which channels stay."""

    criterion: Criterion = "reconstruction"
    """Importance of a channel: the most important stay. `reconstruction`: what the layers that read it lose for good,
    once their other weights make up for it; `l1`: the size of its filter, as in the paper."""

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class RepairConfig:
    """What is repaired without labels."""

    compensate: bool = True
    """Repair the layers that read removed channels by least squares."""

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class MatchConfig:
    """Training of the pruned network's layers on the full network's outputs: after repair, before fine-tuning, and
    without labels."""

    match_steps: Annotated[int, Within("[0, inf)")] | None = None
    """Steps of it; 0: none; None: as many as an epoch has, at least 200 and at most 600."""
    match_batch_size: Annotated[int, Within("[1, inf)")] = 64
    """Images of such a step, all processes together."""
    match_lr: Annotated[float, Within("(0, inf)")] = 0.2
    """Highest learning rate of these steps."""

    def __post_init__(self) -> None:
        check_fields(self)
