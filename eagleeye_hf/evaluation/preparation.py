"""What is measured once per search, and what a scorer has to know for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eagleeye_hf.evaluation.format import FormatChoice
from eagleeye_hf.evaluation.objective import Score
from eagleeye_hf.runtimes.latency_model import LatencyModel
from eagleeye_hf.strategies.budget import Budget
from eagleeye_hf.strategies.frames import Dimension


@dataclass(frozen=True, kw_only=True)
class FullScores:
    """The full network on the holdout images."""

    unchanged: Score
    """With its own statistics."""
    adaptive: Score
    """With recomputed ones."""
    chance: Score
    """What a network that knows nothing scores."""

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> FullScores:
        return FullScores(**{name: Score.from_dict(score) for name, score in data.items()})


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How fast candidates are scored, in seconds."""

    candidate: float
    """What each costs, however few its images."""
    images: float
    """What all images cost on top."""

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Pace:
        return Pace(**data)


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """What is measured once per search, for all of its processes and lives."""

    ranks: str = "loss"
    reports: str = "score"
    full: FullScores | None = None
    compensate: bool | None = None
    """Whether candidates are scored with repaired readers."""
    format: FormatChoice | None = None
    recorded: bool = False
    """Whether candidates are scored in the full network's shapes."""
    matches: bool = False
    """Whether the scorer can train candidates for a few steps first."""
    pace: Pace | None = None
    """Where the device is fast enough that stages are sized by it."""
    latency: LatencyModel | None = None
    alignment: int | None = None
    """The multiple of channels of which widths are, where the search was to find one."""

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Preparation:
        readers: dict[str, Callable[[Any], Any]] = {
            "full": FullScores.from_dict,
            "format": FormatChoice.from_dict,
            "pace": Pace.from_dict,
            "latency": LatencyModel.from_dict,
        }
        read = {name: data.get(name) and reader(data[name]) for name, reader in readers.items()}
        return Preparation(**{**data, **read})


@dataclass(frozen=True, kw_only=True)
class Draws:
    """How a search draws strategies."""

    divisor: int | tuple[int, ...]
    max_ratio: float | Sequence[float]
    dimensions: tuple[Dimension, ...]
    spared: tuple[str, ...]
    """Blocks that stay."""
    budgets: tuple[Budget, ...]
