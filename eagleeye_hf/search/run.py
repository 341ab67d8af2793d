"""Look for the best strategies, on one or many processes, in a run that can be killed and started again."""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator

from eagleeye_hf.channels.cost import count_cost
from eagleeye_hf.channels.graph import ChannelGraph
from eagleeye_hf.configs import flat_dict
from eagleeye_hf.errors import EagleEyeError
from eagleeye_hf.evaluation.preparation import Draws, Preparation
from eagleeye_hf.processes import make_in_main
from eagleeye_hf.runtimes.alignment import UNMEASURED
from eagleeye_hf.search.alignment import divisor_of, loosen, open_space
from eagleeye_hf.search.candidate import Line
from eagleeye_hf.search.config import SearchConfig
from eagleeye_hf.search.diagnosis import diagnose_full_model, diagnose_scores
from eagleeye_hf.search.failures import named_errors, remedy_of
from eagleeye_hf.search.generations import Search
from eagleeye_hf.search.journal import Journal
from eagleeye_hf.search.result import SearchResult
from eagleeye_hf.search.scorer import Scorer, check_scorer
from eagleeye_hf.search.stages import list_stages, size_stages
from eagleeye_hf.search.timing import MEASURED, measure_finalists, measure_leaders
from eagleeye_hf.search.workers import Workers
from eagleeye_hf.strategies.budget import Bounds
from eagleeye_hf.strategies.keeping import largest_ratios, spared_blocks
from eagleeye_hf.strategies.strategy import Strategy, widths_from_ratios
from eagleeye_hf.telling import warn

RULES = 8
"""How scores come about, and candidates follow from them; a journal of other rules can't be gone on with."""
EXAMPLES = 6
"""Random strategies on which formats are compared."""
LOOSE_FIT = 0.1
"""An error of the latency model above which a note says so."""


def run_search(
    score: Scorer,
    graph: ChannelGraph,
    config: SearchConfig,
    *,
    seed: int = 0,
    output: Path | None = None,
    fingerprint: Mapping[str, Any] | None = None,
    accelerator: Accelerator | None = None,
) -> SearchResult:
    """Propose strategies that meet the budgets and score them; the same on any number of processes.

    Candidates come in generations of a fixed size. All are scored on a part of the images, those among the best so far
    on more of them, and the best in the end on all; no image twice.

    Args:
        score: what scores a strategy; `FunctionScorer` makes one of a plain function.
        seed: of everything random in proposals.
        output: folder of the journal `search.jsonl`; a run started again there goes on where it was killed.
        fingerprint: what else determines a score (weights, images...), kept in the journal and compared on resume.
    Raises:
        EagleEyeError: a budget is out of reach, `score` lacks something, the journal in `output` is of another
            configuration or damaged or can't be written, or the device fails; in every process.
    """
    started = time.perf_counter()
    check_scorer(score)
    accelerator = accelerator or Accelerator()
    check_reach(graph, config)  # by every process
    units = score.unit_scores(accelerator) if "width" in config.dimensions else None
    if config.method == "global" and units is None:
        raise EagleEyeError("`method=global` needs a score that has `unit_scores`, as AdaptiveBNScore does")
    settings = flat_dict(config) | {"seed": seed} | _describe_graph(graph, config) | dict(fingerprint or {})
    journal, lines, prepared = _open_journal(output, settings, accelerator)
    prepared = _prepare(score, graph, config, seed, prepared, accelerator, output)
    make_in_main(accelerator, lambda: journal.start(prepared) if journal is not None else None)
    divisor = divisor_of(graph, config, prepared.alignment)
    spaces = [open_space(Bounds(graph, one, prepared.latency), config, divisor) for one in config.budgets]
    workers = Workers(score, accelerator, journal, lines, started, output)
    stages = list_stages(size_stages(config.stages, prepared.pace), config.matched and prepared.matches)
    search = Search(spaces, config, seed, workers, stages, units, prepared.reports)
    notes = [diagnose_full_model(prepared.full) if prepared.full else None]
    if prepared.latency is not None and prepared.latency.error > LOOSE_FIT:
        notes.append(
            f"milliseconds are predicted with a typical error of {prepared.latency.error:.0%}: the machine is busy, or "
            f"its latency hardly follows widths. The {MEASURED} leaders of each budget are measured; raise `tolerance` "
            "if few fit."
        )
    if notes[0] and accelerator.is_main_process:
        warn(notes[0])
    timed = _bounds_latency(config) and len(stages) > 1
    search.run(functools.partial(measure_finalists, search, workers) if timed else None)
    notes += measure_leaders(search, workers)
    notes += _diagnose(search, prepared)
    return SearchResult(
        candidates=tuple(search.candidates),
        budgets=config.budgets,
        reports=prepared.reports,
        full=prepared.full,
        notes=tuple(note for note in notes if note),
    )


def check_reach(graph: ChannelGraph, config: SearchConfig) -> None:
    """Refuse budgets that no strategy meets, as far as is known before anything is measured.

    Raises:
        EagleEyeError: a budget of MACs or parameters is out of reach, or `keep` names nothing.
    """
    for budget in config.budgets:
        if "latency" not in budget.limits:
            open_space(Bounds(graph, budget), config, 1 if config.divisor == "auto" else config.divisor)


def _bounds_latency(config: SearchConfig) -> bool:
    return any("latency" in budget.limits for budget in config.budgets)


def _describe_graph(graph: ChannelGraph, config: SearchConfig) -> dict[str, Any]:
    """What readers of the journal need to know of the network and of the budgets."""
    return {
        "rules": RULES,
        "budgets": [str(budget) for budget in config.budgets],
        "groups": [group.name for group in graph.groups],
        "prunable": [group.prunable for group in graph.groups],
        "channels": list(graph.widths),
        "blocks": {block.name: list(block.groups) for block in graph.blocks if block.removable},
        "image_size": graph.image_size,
        "image_sizes": list(graph.image_sizes),
        "full": count_cost(graph, graph.widths)._asdict(),
    }


def _diagnose(search: Search, prepared: Preparation) -> list[str]:
    """What is wrong with the scores of each budget."""
    notes = []
    for number, space in enumerate(search.spaces):
        own = [candidate for candidate in search.candidates if candidate.budget == number]
        note = diagnose_scores(own, prepared.full)
        if note:
            notes.append(note if len(search.spaces) == 1 else f"{space.bounds.budget}: {note}")
    return notes


def _open_journal(
    output: Path | None, settings: Mapping[str, Any], accelerator: Accelerator
) -> tuple[Journal | None, list[Line], Preparation | None]:
    """The journal, in the main process alone, and what it holds, in every process: nodes need no common folder."""
    if output is None:
        return None, [], None
    journals = []

    def read() -> tuple[list[Line], Preparation | None]:
        journals.append(Journal(output / "search.jsonl", settings))
        return list(journals[0].lines), journals[0].prepared

    lines, prepared = make_in_main(accelerator, read)
    return (journals[0] if journals else None), lines, prepared


def _prepare(
    score: Scorer,
    graph: ChannelGraph,
    config: SearchConfig,
    seed: int,
    prepared: Preparation | None,
    accelerator: Accelerator,
    output: Path | None,
) -> Preparation:
    """What is measured once per search: by the first life, in the main process, for all."""

    def measure() -> Preparation:
        alignment, timed = None, _bounds_latency(config)
        if config.divisor == "auto":
            with named_errors("measuring milliseconds", remedy_of(output)):
                alignment = score.measure_alignment() or UNMEASURED
        found = prepare(alignment, timed)
        while alignment is not None:
            looser = loosen(graph, config, found, alignment, seed)
            if looser == alignment or not timed:
                return replace(found, alignment=looser)
            alignment = looser  # the model of milliseconds has to know the widths that are drawn
            found = replace(found, latency=prepare(alignment, timed).latency)
        return found

    def prepare(alignment: int | None, timed: bool) -> Preparation:
        divisor = divisor_of(graph, config, alignment)
        limits = largest_ratios(graph, config.max_ratio, config.keep)
        spared = spared_blocks(graph, config.keep)
        draws = Draws(
            divisor=divisor, max_ratio=limits, dimensions=config.dimensions, spared=spared, budgets=config.budgets
        )
        with named_errors("scoring the full network", remedy_of(output)):
            return score.prepare(_draw_examples(graph, config, seed), draws if timed else None)

    prepared = prepared or make_in_main(accelerator, measure)
    score.adopt(prepared)
    return prepared


def _draw_examples(graph: ChannelGraph, config: SearchConfig, seed: int) -> list[Strategy]:
    """Strategies like those that the search will score, but for the last step to the budget."""
    limits = largest_ratios(graph, config.max_ratio, config.keep)
    ratios = np.random.default_rng(seed).random((EXAMPLES, len(graph.prunable))) * np.asarray(limits)
    for budget in config.budgets:
        if "latency" not in budget.limits:
            space = open_space(Bounds(graph, budget), config, 1)
            frames = space.draw_frames([np.random.default_rng((seed, number)) for number in range(EXAMPLES)])
            rows = space.widths(space.shift(ratios, frames), frames)
            return [space.strategy(row) for row in rows]
    return [Strategy(tuple(row)) for row in widths_from_ratios(graph, ratios)]
