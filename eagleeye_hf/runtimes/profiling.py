"""From a network in a runtime to its latency model: sub-nets drawn, profiled, measured; kept for the next time."""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr
from torch import nn

from eagleeye_hf.channels.cost import count_cost
from eagleeye_hf.channels.graph import ChannelGraph
from eagleeye_hf.errors import EagleEyeError
from eagleeye_hf.networks.running import evaluation_mode
from eagleeye_hf.pruning.importance import Importance
from eagleeye_hf.runtimes.cache import cache_folder, identify, read_cache, write_cache
from eagleeye_hf.runtimes.latency import draw_images, take_turns
from eagleeye_hf.runtimes.latency_model import LatencyModel, fit_layers
from eagleeye_hf.runtimes.runtime import Loader, Place, Program, Runtime
from eagleeye_hf.strategies.budget import Bounds, Budget
from eagleeye_hf.strategies.space import Space
from eagleeye_hf.strategies.strategy import widths_from_ratios
from eagleeye_hf.telling import progress_bar, say

PROFILED = 72
"""Sub-nets whose operators are profiled, where time allows."""
LEAST = 24
"""Sub-nets that are profiled however long it takes."""
SECONDS = 70.0
"""That profiling may take."""
ROUNDS = (6, 12)
"""Of a profile, the least and the most."""
MEASURED = 18
"""Sub-nets that are measured as a whole, beside the full network."""
TOGETHER = 6
"""Of these at a time."""
TURNS = 12
AT_BUDGET = 8
"""Sub-nets measured at each budget on milliseconds."""
BUDGETS = 6
"""Between which the sub-nets are drawn."""


@dataclass(frozen=True, kw_only=True)
class _Subject:
    """The network whose thin versions are measured, and how they are drawn."""

    model: nn.Module
    graph: ChannelGraph
    importance: Importance
    load_thin: Loader
    divisor: int | Sequence[int]
    max_ratio: float | Sequence[float]
    seed: int

    def load(self, widths: Sequence[int] | np.ndarray) -> Program:
        return self.load_thin(self.importance.choose(tuple(map(int, widths))))


def fit_latency(
    model: nn.Module,
    graph: ChannelGraph,
    importance: Importance,
    runtime: Runtime,
    *,
    divisor: int | Sequence[int] = 1,
    max_ratio: float | Sequence[float] = 0.7,
    budgets: Sequence[Budget] = (),
    seed: int = 0,
) -> LatencyModel:
    """Profile random sub-nets between a budget's least and the full network, and fit a model of each layer to them.

    Profiling itself takes time for each operator, so the sum over layers is then brought to the milliseconds of whole
    networks, measured beside the full one, by a factor and an offset; those that half of the networks give tell the
    error on the others. At last the same is done with networks drawn at each budget. Layers that were fitted for the
    same network, runtime, device and threads before are used again.

    Args:
        divisor, max_ratio: as in `Space`: how the search will draw widths.
        budgets: of the search; those on milliseconds count.
    """
    started = time.perf_counter()
    file = _cache_file(graph, runtime, divisor, max_ratio)
    with evaluation_mode(model):
        subject = _Subject(
            model=model,
            graph=graph,
            importance=importance,
            load_thin=runtime.load_thin(model, graph, draw_images(runtime, graph.input_size)),
            divisor=divisor,
            max_ratio=max_ratio,
            seed=seed,
        )
        full_ms = min(take_turns([subject.load(graph.widths)], TURNS)[0])
        found = _known(file)
        if found is not None:
            say(f"milliseconds in {found.place}: layers as fitted before, in {file}")
            found = found.adjusted(full_ms / found.full_ms, 0.0, full_ms)
        else:
            found = _fit(subject, runtime.place, full_ms)
            write_cache(file, replace(found, seconds=round(time.perf_counter() - started, 1)).to_dict())
        found = replace(_fit_to_budgets(subject, found, budgets), at_size=_measure_sizes(model, graph, runtime))
    return replace(found, seconds=round(time.perf_counter() - started, 1))


def _fit(subject: _Subject, place: Place, full_ms: float) -> LatencyModel:
    """From profiles and measurements of sub-nets of all sizes."""
    started, graph = time.perf_counter(), subject.graph
    widths = draw_widths(graph, subject.divisor, subject.max_ratio, PROFILED + MEASURED, subject.seed)
    rounds = int(np.clip(1000 * SECONDS / PROFILED / (1.2 * full_ms) - 2, *ROUNDS))
    profiles = [subject.load(graph.widths).profile(rounds)]
    for number in progress_bar(range(PROFILED), "profiling", unit="sub-net", delay=2, leave=False):
        if number >= LEAST and time.perf_counter() - started > SECONDS:
            break
        profiles.append(subject.load(widths[number]).profile(rounds))
    profiled = np.vstack([graph.widths, widths[: len(profiles) - 1]])
    layers, constant = fit_layers(subject.model, graph, profiled, profiles)
    raw = LatencyModel(place=place, layers=tuple(layers), constant=constant, full_ms=full_ms, error=float("inf"))
    predicted, truth = _measure(subject, raw, widths[PROFILED:])
    held_out = np.arange(len(truth)) % 2 == 0
    held_out[0] = False  # the full network is what fractions are of
    factor, offset = _fit_line(predicted[~held_out], truth[~held_out])
    guess = predicted[held_out] * factor + offset
    error = float(np.mean(np.abs(guess / truth[held_out] - 1)))
    say(
        f"milliseconds in {place}: {len(profiles)} profiles in {time.perf_counter() - started:.0f} s; error "
        f"{error:.1%}, rank correlation {spearmanr(guess, truth[held_out]).statistic:.2f} on {held_out.sum()} sub-nets "
        "that were not fitted to"
    )
    return replace(raw.adjusted(*_fit_line(predicted, truth), float(truth[0])), error=error)


def _fit_to_budgets(subject: _Subject, found: LatencyModel, budgets: Sequence[Budget]) -> LatencyModel:
    """Brought to the milliseconds of networks at the budgets, for the model is the best there where it is fitted."""
    random, drawn = np.random.default_rng((subject.seed, 1)), list[np.ndarray]()
    for budget in budgets:
        if "latency" not in budget.limits:
            continue
        try:
            space = Space(Bounds(subject.graph, budget, found), subject.divisor, subject.max_ratio)
        except EagleEyeError:  # out of reach, which the search says once the model is final
            continue
        drawn += [space.widths(space.shift(space.draw(random)[None]))[0] for _ in range(AT_BUDGET)]
    if not drawn:
        return found
    predicted, truth = _measure(subject, found, np.array(drawn))
    return found.adjusted(*_fit_line(predicted, truth), float(truth[0]))


def draw_widths(
    graph: ChannelGraph, divisor: int | Sequence[int], max_ratio: float | Sequence[float], num: int, seed: int
) -> np.ndarray:
    """Random widths like those of a search, at MACs from the least possible up to 0.9 of the full network's."""
    random = np.random.default_rng(seed)
    smallest = widths_from_ratios(graph, np.broadcast_to(np.asarray(max_ratio), len(graph.prunable)), divisor)
    low = min(0.85, 1.15 * count_cost(graph, smallest).macs / count_cost(graph, graph.widths).macs)
    spaces = [Space(Bounds(graph, Budget(macs=macs)), divisor, max_ratio) for macs in np.linspace(low, 0.9, BUDGETS)]
    turns = itertools.islice(itertools.cycle(spaces), num)
    chosen = [space.widths(space.shift(space.draw(random)[None]))[0] for space in turns]
    return np.array(chosen)


def _fit_line(predicted: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Factor and offset from predicted to measured milliseconds: least squares of relative errors, then once more
    without what something else disturbed."""
    columns = np.stack([predicted, np.ones(len(predicted))], axis=1) / truth[:, None]
    sound = np.ones(len(truth), dtype=bool)
    for _ in range(2):
        line = np.linalg.lstsq(columns[sound], np.ones(sound.sum()), rcond=None)[0]
        misses = np.abs(columns @ line - 1)
        sound = misses <= 3 * np.median(misses) + 1e-3
    return float(line[0]), float(line[1])


def _measure(subject: _Subject, fitted: LatencyModel, widths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Milliseconds of whole networks, the full one first: predicted, and measured.

    Networks take turns with the full one, a few at a time; what counts is their part of its milliseconds.
    """
    graph = subject.graph
    full, relative, full_times = subject.load(graph.widths), [1.0], list[float]()
    for start in range(0, len(widths), TOGETHER):
        programs = [subject.load(row) for row in widths[start : start + TOGETHER]]
        full_ms, *times = (min(turns) for turns in take_turns([full, *programs], TURNS))
        relative += [ms / full_ms for ms in times]
        full_times.append(full_ms)
    return fitted.predict(graph, np.vstack([graph.widths, widths])), np.array(relative) * min(full_times)


def _measure_sizes(model: nn.Module, graph: ChannelGraph, runtime: Runtime) -> tuple[tuple[int, float], ...]:
    """The part of its milliseconds that the full network takes at each other image size."""
    others = [size for size in graph.image_sizes if size != graph.image_size]
    if not others:
        return ()
    channels = graph.input_size[0]
    shapes = [graph.input_size, *((channels, size, size) for size in others)]
    programs = [runtime.load(model, draw_images(runtime, shape)) for shape in shapes]
    full, *taken = (min(turns) for turns in take_turns(programs, TURNS))
    return tuple((size, ms / full) for size, ms in zip(others, taken, strict=True))


def _cache_file(
    graph: ChannelGraph, runtime: Runtime, divisor: int | Sequence[int], max_ratio: float | Sequence[float]
) -> Path:
    facts = identify(runtime) | {"graph": graph.to_json(), "divisor": str(divisor), "max_ratio": str(max_ratio)}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:20]
    return cache_folder() / "latency" / f"{digest}.json"


def _known(file: Path) -> LatencyModel | None:
    """The model that was kept; None where there is none, or one of another version."""
    try:
        return LatencyModel.from_dict(read_cache(file))
    except (TypeError, LookupError, AttributeError):
        return None
