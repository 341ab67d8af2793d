"""What a search found."""

from __future__ import annotations

from dataclasses import dataclass

from eagleeye_hf.errors import EagleEyeError
from eagleeye_hf.evaluation.preparation import FullScores
from eagleeye_hf.search.candidate import Candidate, rank_candidates
from eagleeye_hf.strategies.budget import Budget


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    candidates: tuple[Candidate, ...]
    """In the order they were proposed."""
    budgets: tuple[Budget, ...]
    reports: str = "score"
    """What is reported beside the loss, as top-1."""
    full: FullScores | None = None
    """Of the full network."""
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
