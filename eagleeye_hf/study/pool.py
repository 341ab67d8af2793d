"""Which sub-nets a study fine-tunes: random ones, and what searches would choose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from eagleeye_hf.evaluation.score import AdaptiveBNScore
from eagleeye_hf.search.candidate import Candidate
from eagleeye_hf.search.config import SearchConfig
from eagleeye_hf.search.reading import read_journal
from eagleeye_hf.search.result import SearchResult
from eagleeye_hf.search.run import run_search
from eagleeye_hf.study.config import COMPARATORS, Comparator

POOL = "pool"
OTHERS = 10_000
"""The first index of sub-nets that are not in the pool, so that a pool can grow."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What a method of search chose."""

    method: str
    budget: int
    index: int
    """Of the sub-net."""
    candidates: int
    """That the search scored under this budget."""
    seconds: float
    """Of the search, all budgets together; 0 where it only names a strategy."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """All sub-nets of a study."""

    pool: SearchResult
    """Random strategies, the uniform one first, scored as the search scores its leaders: on all images."""
    others: tuple[Candidate, ...]
    """Choices of methods that are not in the pool."""
    choices: tuple[Choice, ...]

    @property
    def subnets(self) -> list[Candidate]:
        return [*self.pool.candidates, *self.others]


def choose_subnets(
    score: AdaptiveBNScore,
    config: SearchConfig,
    num: int,
    methods: Sequence[Comparator],
    *,
    seed: int,
    output: Path,
    accelerator: Accelerator,
) -> Chosen:
    """Draw the pool, and let each method choose as many as there are budgets.

    Args:
        num: sub-nets per budget.
        output: folder of the searches' journals; what was scored there is not scored again.
    Raises:
        EagleEyeError: as `run_search`.
    """
    told: dict[str, Any] = {"seed": seed, "fingerprint": score.fingerprint(), "accelerator": accelerator}
    all_images = replace(config, method="random", candidates=num, minutes=None, stages=(1.0,), matched=False)
    pool = run_search(score, score.graph, all_images, output=output / POOL / str(num), **told)
    known = {(c.budget, c.strategy): c for c in pool.candidates}
    others: list[Candidate] = []
    choices = [
        Choice(method="uniform", budget=budget, index=_uniform(pool, budget).index, candidates=1, seconds=0.0)
        for budget in range(len(config.budgets))
    ]
    for method in methods:
        wanted = replace(config, method=method)
        found = run_search(score, score.graph, wanted, output=output / method, **told)
        for budget in range(len(config.budgets)):
            best = _named(found, budget) if method == "global" else found.best_of(budget)
            if (budget, best.strategy) not in known:
                index = OTHERS + COMPARATORS.index(method) * len(config.budgets) + budget
                others.append(replace(best, index=index, origin=method))
                known[budget, best.strategy] = others[-1]
            scored = [c for c in found.candidates if c.budget == budget]
            choices.append(
                Choice(
                    method=method,
                    budget=budget,
                    index=known[budget, best.strategy].index,
                    candidates=1 if method == "global" else len(scored),
                    seconds=_seconds(output / method, accelerator, method),
                )
            )
    return Chosen(pool=pool, others=tuple(others), choices=tuple(choices))


def _uniform(pool: SearchResult, budget: int) -> Candidate:
    return next(c for c in pool.candidates if c.budget == budget and c.origin == "uniform")


def _named(found: SearchResult, budget: int) -> Candidate:
    """The global strategy itself, whatever its score."""
    own = [c for c in found.candidates if c.budget == budget]
    return next((c for c in own if c.origin == "global"), own[0])


def _seconds(folder: Path, accelerator: Accelerator, method: str) -> float:
    if method == "global" or not accelerator.is_main_process:
        return 0.0
    return read_journal(folder).elapsed
