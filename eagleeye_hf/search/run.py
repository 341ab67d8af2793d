"""Look for the best strategies, on one or many processes, in a run that can be killed and started again."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from tqdm.auto import tqdm

from eagleeye_hf.channels.cost import count_cost
from eagleeye_hf.channels.graph import ChannelGraph
from eagleeye_hf.errors import EagleEyeError
from eagleeye_hf.search.config import SearchConfig
from eagleeye_hf.search.diagnosis import diagnose_full_model, diagnose_scores
from eagleeye_hf.search.generations import Search
from eagleeye_hf.search.journal import Journal
from eagleeye_hf.search.result import Candidate, SearchResult
from eagleeye_hf.search.workers import Scorer, Workers
from eagleeye_hf.strategies.budget import Bounds, LatencyModel
from eagleeye_hf.strategies.sampling import Space
from eagleeye_hf.strategies.strategy import widths_from_ratios

EXAMPLES = 6
"""Random strategies on which formats are compared."""
MEASURED = 10
"""Leaders of each budget whose latency is measured."""
LOOSE_FIT = 0.1
"""An error of the latency model above which a note says so."""
ROUNDS = 10
"""How often more leaders are measured before giving up."""
LATENCY_SLACK = 0.05
"""By how much a measured latency may exceed its bound, for measurements are noisy."""


def run_search(
    score: Scorer,
    graph: ChannelGraph,
    config: SearchConfig,
    *,
    output: Path | None = None,
    fingerprint: Mapping[str, Any] | None = None,
    accelerator: Accelerator | None = None,
) -> SearchResult:
    """Propose strategies that meet the budgets and score them; the same on any number of processes.

    Candidates come in generations of a fixed size. All of one are scored on a part of the images, and those among the
    best so far on more of them, up to all.

    Args:
        score: widths, one per group of the graph, to a score with `loss`, `top1` and `num_images`.
        output: folder of the journal `search.jsonl`; a run started again there goes on where it was killed.
        fingerprint: what else determines a score (weights, images...), kept in the journal and compared on resume.
    Raises:
        EagleEyeError: a budget is out of reach, or the journal in `output` is of another configuration.
    """
    started = time.perf_counter()
    accelerator = accelerator or Accelerator()
    for budget in config.budgets:  # refused at once, and by every process
        if budget.latency_ms is None:
            Space(Bounds(graph, budget), config.divisor, config.max_ratio)
    full = count_cost(graph, graph.widths)._asdict()
    shape = {
        "groups": [group.name for group in graph.groups],
        "prunable": [group.prunable for group in graph.groups],
        "channels": list(graph.widths),
        "full": full,
    }
    journal, rows, facts = _open_journal(output, asdict(config) | shape | dict(fingerprint or {}), accelerator)
    facts = _gather_facts(score, graph, config, facts, accelerator)
    if journal is not None:
        journal.start(facts)
    latency = LatencyModel(**facts["latency"]) if facts.get("latency") else None
    spaces = [Space(Bounds(graph, own, latency), config.divisor, config.max_ratio) for own in config.budgets]
    unit_scores = getattr(score, "unit_scores", None)
    workers = Workers(score, accelerator, journal, rows, started)
    search = Search(spaces, config, workers, unit_scores() if unit_scores else None)
    notes = [diagnose_full_model(facts["full"]) if facts.get("full") else None]
    if latency is not None and latency.error > LOOSE_FIT:
        notes.append(
            f"milliseconds are predicted with a typical error of {latency.error:.0%}: the machine is busy, or its "
            f"latency hardly follows widths. The {MEASURED} leaders of each budget are measured; raise `tolerance` "
            "if few fit."
        )
    if notes[0] and accelerator.is_main_process:
        tqdm.write(f"warning: {notes[0]}", file=sys.stderr)
    search.run()
    _measure_leaders(search, workers)
    notes.append(diagnose_scores(search.candidates, facts.get("full")))
    return SearchResult(
        candidates=tuple(search.candidates), budgets=config.budgets, notes=tuple(note for note in notes if note)
    )


def _open_journal(
    output: Path | None, settings: Mapping[str, Any], accelerator: Accelerator
) -> tuple[Journal | None, list[dict[str, Any]], dict[str, Any]]:
    """The journal, in the main process alone, and what it holds, in every process: nodes need no common folder."""
    journal, error, rows, facts = None, "", [], {}
    if output is not None and accelerator.is_main_process:
        try:
            journal = Journal(output / "search.jsonl", settings)
            rows, facts = journal.rows, journal.facts
        except EagleEyeError as reason:
            error = str(reason)
    if accelerator.num_processes > 1:
        error, rows, facts = broadcast_object_list([error, rows, facts])
    if error:
        raise EagleEyeError(error)
    return journal, list(rows), facts


def _gather_facts(
    score: Scorer, graph: ChannelGraph, config: SearchConfig, facts: dict[str, Any], accelerator: Accelerator
) -> dict[str, Any]:
    """What is measured once per search: by the first life, in the main process, for all."""
    if not hasattr(score, "prepare"):
        return {}
    if not facts and accelerator.is_main_process:
        latency = any(budget.latency_ms is not None for budget in config.budgets)
        facts = score.prepare(_draw_examples(graph, config), latency)
    if accelerator.num_processes > 1:
        facts = broadcast_object_list([facts])[0]
    score.adopt(facts)  # type: ignore[attr-defined]
    return facts


def _draw_examples(graph: ChannelGraph, config: SearchConfig) -> list[list[int]]:
    """Widths like those that the search will score, but for the last step to the budget."""
    ratios = np.random.default_rng(config.seed).random((EXAMPLES, len(graph.prunable))) * config.max_ratio
    for budget in config.budgets:
        if budget.latency_ms is None:
            return widths_from_ratios(
                graph, Space(Bounds(graph, budget), max_ratio=config.max_ratio).shift(ratios)
            ).tolist()
    return widths_from_ratios(graph, ratios).tolist()


def _measure_leaders(search: Search, workers: Workers) -> None:
    """Measure the milliseconds of the best candidates; one beyond its bound leads no longer.

    Where a bound excludes leaders, more are measured, until one is within it.
    """
    if not hasattr(workers.score, "measure"):
        return
    for number, space in enumerate(search.spaces):
        bound = space.bounds.budget.latency_ms
        for _ in range(ROUNDS):
            leaders = search.leaders(number)[:MEASURED]
            pending = [c for c in leaders if (c.index, "latency") not in workers.rows]
            rows = [workers.rows[c.index, "latency"] for c in leaders if c not in pending]
            if pending:
                main = workers.accelerator.is_main_process
                rows += workers.share(_latency_rows(workers, pending, bound) if main else [])
            for row in rows:
                search.take(row)
            first = search.leaders(number)[:1]
            if bound is None or not first or (first[0].index, "latency") in workers.rows:
                break


def _latency_rows(workers: Workers, candidates: Sequence[Candidate], bound: float | None) -> list[dict[str, Any]]:
    full_ms, times = workers.score.measure([c.strategy.widths for c in candidates])  # type: ignore[attr-defined]
    limit = math.inf if bound is None else (bound * full_ms if bound <= 1 else bound) * (1 + LATENCY_SLACK)
    rows = []
    for candidate, own in zip(candidates, times, strict=True):
        status = (
            "ok" if own <= limit else f"measured {own:.2f} ms, beyond the bound of {limit / (1 + LATENCY_SLACK):.2f}"
        )
        row = {"index": candidate.index, "stage": "latency", "latency_ms": round(own, 4), "full_ms": round(full_ms, 4)}
        rows.append(row | {"elapsed": round(workers.elapsed, 2), "status": status})
    return rows
