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


def measure_leaders(search: Search, workers: Workers) -> list[str]:
    """Measure the milliseconds of the best candidates; those beyond their bound go behind all others.

    Where a bound excludes leaders, more are measured, until one is within it.

    Returns:
        Notes on the budgets that no measured candidate keeps.
    """
    notes = []
    for number, space in enumerate(search.spaces):
        limit = space.bounds.budget.limits.get("latency")
        for _ in range(ROUNDS):
            leaders = search.leaders(number)[:MEASURED]
            pending = [candidate for candidate in leaders if candidate.index not in workers.timed]
            lines = [workers.timed[c.index] for c in leaders if c.index in workers.timed]
            if pending:
                lines += workers.record_times(functools.partial(_time_candidates, workers, pending, limit))
            for line in lines:
                search.take(line)
            first = search.leaders(number)[:1]
            if limit is None or not first or first[0].index in workers.timed:
                break
        best = search.leaders(number)[:1]
        if best and best[0].beyond and best[0].latency:
            notes.append(
                f"no measured candidate keeps to `latency={space.bounds.budget.latency}`: the nearest, which is "
                f"chosen, takes {best[0].latency.milliseconds:.3g} ms, {best[0].beyond:.1%} more than allowed. Ask for "
                "a little less, or measure on a quieter machine."
            )
    return notes


def _time_candidates(workers: Workers, candidates: Sequence[Candidate], limit: Limit | None) -> list[Timed]:
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
