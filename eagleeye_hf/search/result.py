"""What a search found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from eagleeye_hf.errors import EagleEyeError
from eagleeye_hf.strategies.budget import Budget
from eagleeye_hf.strategies.strategy import Strategy


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A strategy and its score on the holdout images after adaptive BatchNorm."""

    index: int
    strategy: Strategy
    budget: int = 0
    """Which of the search's budgets it meets."""
    loss: float | None = None
    top1: float | None = None
    num_images: int = 0
    """Holdout images of its last stage."""
    seconds: float = 0.0
    """Spent on it in all stages."""
    status: str = "not scored"
    """`ok`, or what went wrong."""
    latency_ms: float | None = None
    """Measured, or where the budget bounds it and it was not measured, predicted."""

    @property
    def scored(self) -> bool:
        return self.status == "ok" and self.loss is not None

    def updated(self, row: dict[str, Any]) -> Candidate:
        """With what a line of the journal says about it."""
        if row["stage"] == "latency":
            return replace(self, latency_ms=row["latency_ms"], status=row["status"])
        keys = ("loss", "top1", "num_images", "status")
        return replace(self, **{key: row[key] for key in keys}, seconds=self.seconds + row["seconds"])


def rank_candidates(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those that have a score; more images first, then the lower holdout loss."""
    return sorted((c for c in candidates if c.scored), key=lambda c: (-c.num_images, c.loss, c.index))


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    candidates: tuple[Candidate, ...]
    """In the order they were proposed."""
    budgets: tuple[Budget, ...]
    notes: tuple[str, ...] = ()
    """What is wrong with the scores, and what to do; empty when all is well."""

    @property
    def leaders(self) -> list[Candidate]:
        """The scored candidates of the first budget, best first."""
        return self.leaders_of(0)

    @property
    def best(self) -> Candidate:
        """The first budget's best."""
        return self.best_of(0)

    def leaders_of(self, budget: int) -> list[Candidate]:
        return rank_candidates([c for c in self.candidates if c.budget == budget])

    def best_of(self, budget: int) -> Candidate:
        """
        Raises:
            EagleEyeError: none has a score.
        """
        leaders = self.leaders_of(budget)
        if not leaders:
            first = next(c for c in self.candidates if c.budget == budget)
            raise EagleEyeError(f"no candidate could be scored; the first one failed with: {first.status}")
        return leaders[0]
