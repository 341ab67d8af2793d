"""A journal read back, to be looked at."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eagleeye_hf.errors import EagleEyeError
from eagleeye_hf.evaluation.preparation import Preparation
from eagleeye_hf.search.candidate import Candidate, rank_candidates
from eagleeye_hf.search.journal import read_lines
from eagleeye_hf.search.lines import settle_lines


@dataclass(frozen=True, kw_only=True)
class SearchRecord:
    """What a journal holds."""

    settings: dict[str, Any]
    prepared: Preparation
    candidates: tuple[Candidate, ...]
    """In the order of their index."""
    first_losses: dict[int, float]
    """By index: at the first stage, which all candidates have, on the same images."""
    elapsed: float
    """Seconds of the whole search."""

    @property
    def num_budgets(self) -> int:
        return 1 + max((candidate.budget for candidate in self.candidates), default=0)

    def leaders(self, budget: int = 0) -> list[Candidate]:
        return rank_candidates([c for c in self.candidates if c.budget == budget])

    def kept_fractions(self, candidates: list[Candidate]) -> np.ndarray:
        """Shape `(num_candidates, num_groups)`; 0 where a group is gone with its block."""
        kept = np.array([c.strategy.widths for c in candidates]) / np.array(self.settings["channels"])
        for row, candidate in zip(kept, candidates, strict=True):
            for name in candidate.strategy.removed_blocks:
                row[self.settings["blocks"][name]] = 0
        return kept

    def budget_name(self, budget: int) -> str:
        return self.settings["budgets"][budget]


def read_journal(path: Path) -> SearchRecord:
    """Read `search.jsonl`, or the one in a folder; a search under way can be read too.

    Raises:
        EagleEyeError: there is none, it is no journal, or nothing is finished yet.
    """
    path = path / "search.jsonl" if path.is_dir() else path
    if not path.is_file():
        raise EagleEyeError(f"`journal={path}` does not exist; give the search.jsonl of a search, or its folder")
    settings, prepared, lines = read_lines(path)
    if prepared is None or not lines:
        raise EagleEyeError(f"`journal={path}` holds no finished candidate yet")
    standing = settle_lines(lines)
    candidates: dict[int, Candidate] = {}
    losses: dict[int, float] = {}
    for (index, stage), line in sorted(standing.scored.items(), key=lambda item: item[0][::-1]):
        candidates[index] = line.apply(candidates.get(index, line.candidate))
        if stage == 0 and line.score is not None:
            losses[index] = line.score.loss
    for index, timed in standing.timed.items():
        candidates[index] = timed.apply(candidates[index])
    return SearchRecord(
        settings=settings,
        prepared=prepared,
        candidates=tuple(candidates[index] for index in sorted(candidates)),
        first_losses=losses,
        elapsed=max(line.elapsed for line in lines),
    )


@contextmanager
def expected_values() -> Iterator[None]:
    """One clear error where a record's values are none that a search writes: of another type, zero, left out."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise EagleEyeError(
            f"the journal holds values that no search writes ({type(error).__name__}: {error}); report another one, "
            "or remove the lines that are wrong"
        ) from error
