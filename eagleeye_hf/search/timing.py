"""Milliseconds of the leaders, measured; a budget is kept by what was measured, not by what was predicted."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

from eagleeye_hf.search.candidate import Candidate, Timed
from eagleeye_hf.search.failures import named_errors, remedy_of
from eagleeye_hf.search.generations import Search
from eagleeye_hf.search.workers import Workers
from eagleeye_hf.strategies.budget import Limit

MEASURED = 10
"""Leaders of each budget whose latency is measured at a time."""
ROUNDS = 10
"""How often more leaders are measured before giving up."""
LATENCY_SLACK = 0.02
"""By how much a measured latency may exceed its bound, for measurements are noisy."""


def measure_finalists(search: Search, workers: Workers) -> None:
    """Measure the milliseconds of those that would come to the last stage under a bound on them, so that none is
    trained there that is beyond it: predictions of single networks are some percent off."""
    for number in range(len(search.spaces)):
        known = set[int]()
        for _ in range(ROUNDS if _limit(search, number) else 0):
            fresh = [candidate for candidate in search.finalists(number) if candidate.index not in known]
            known |= {candidate.index for candidate in fresh}
            if not fresh or not _measure(search, workers, number, fresh):
                break


def measure_leaders(search: Search, workers: Workers) -> list[str]:
    """Measure the milliseconds of the best candidates; those beyond their bound go behind all others.

    Where a bound excludes leaders, more are measured, until one is within it.

    Returns:
        Notes on the budgets that no measured candidate keeps.
    """
    notes = []
    for number, space in enumerate(search.spaces):
        for _ in range(ROUNDS):
            _measure(search, workers, number, search.leaders(number)[:MEASURED])
            first = search.leaders(number)[:1]
            if _limit(search, number) is None or not first or first[0].index in workers.timed:
                break
        best = search.leaders(number)[:1]
        if best and best[0].beyond and best[0].latency:
            notes.append(
                f"no measured candidate keeps to `latency={space.bounds.budget.latency}`: the nearest, which is "
                f"chosen, takes {best[0].latency.milliseconds:.3g} ms, {best[0].beyond:.1%} more than allowed. Ask for "
                "a little less, or measure on a quieter machine."
            )
    return notes


def _limit(search: Search, budget: int) -> Limit | None:
    return search.spaces[budget].bounds.budget.limits.get("latency")


def _measure(search: Search, workers: Workers, budget: int, candidates: Sequence[Candidate]) -> bool:
    """Know the milliseconds of some candidates of a budget: as they are on record, or measured; whether that can be."""
    for start in range(0, len(candidates), MEASURED):
        some = candidates[start : start + MEASURED]
        workers.record_times(functools.partial(_time_candidates, workers, some, _limit(search, budget)))
    lines = [workers.timed[c.index] for c in candidates if c.index in workers.timed]
    for line in lines:
        search.take(line)
    return len(lines) == len(candidates)


def _time_candidates(workers: Workers, candidates: Sequence[Candidate], limit: Limit | None) -> list[Timed]:
    """In the main process, of those that are not on record there."""
    candidates = [candidate for candidate in candidates if candidate.index not in workers.timed]
    if not candidates:
        return []
    lines = []
    with named_errors("measuring milliseconds", remedy_of(workers.output)):
        times = workers.score.measure_latency([candidate.strategy for candidate in candidates])
    for candidate, latency in zip(candidates, times, strict=False):  # none, where the scorer can't measure
        bound = limit.bound(latency.full_ms) if limit else math.inf
        beyond = latency.milliseconds / bound - 1
        lines.append(
            Timed(
                index=candidate.index,
                latency=latency,
                beyond=beyond if beyond > LATENCY_SLACK else 0.0,
                elapsed=round(workers.elapsed, 2),
            )
        )
    return lines
