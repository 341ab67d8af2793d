"""From a network in a runtime to its latency model: sub-nets drawn, profiled, measured; kept for the next time."""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr
from torch import nn

from eagleeye_hf.channels.cost import count_cost, strategy_rows
from eagleeye_hf.channels.graph import ChannelGraph
from eagleeye_hf.errors import EagleEyeError
from eagleeye_hf.networks.running import evaluation_mode
from eagleeye_hf.pruning.importance import Importance
from eagleeye_hf.runtimes.cache import cache_folder, identify, read_cache, write_cache
from eagleeye_hf.runtimes.latency import take_turns
from eagleeye_hf.runtimes.latency_model import LatencyModel, WholeTime, fit_layers
from eagleeye_hf.runtimes.runtime import Place, Program, Runtime
from eagleeye_hf.runtimes.timing import StrategyTimer
from eagleeye_hf.strategies.budget import Bounds, Budget
from eagleeye_hf.strategies.frames import Dimension
from eagleeye_hf.strategies.space import Space
from eagleeye_hf.strategies.strategy import Strategy, widths_from_ratios
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
AT_SIZE = 8
"""Sub-nets measured at each other image size."""
AT_BUDGET = 8
"""Sub-nets measured at each budget on milliseconds."""
BUDGETS = 6
"""Between which the sub-nets are drawn."""


@dataclass(frozen=True, kw_only=True)
class _Subject:
    """The network whose smaller versions are measured, and how they are drawn."""

    model: nn.Module
    graph: ChannelGraph
    load: Callable[[Strategy], Program]
    divisor: int | Sequence[int]
    max_ratio: float | Sequence[float]
    seed: int

    @property
    def full(self) -> Strategy:
        return Strategy(self.graph.widths)

    def draw(self, num: int) -> list[Strategy]:
        return [
            Strategy(tuple(map(int, widths)))
            for widths in draw_widths(self.graph, self.divisor, self.max_ratio, num, self.seed)
        ]


def fit_latency(
    model: nn.Module,
    graph: ChannelGraph,
    importance: Importance,
    runtime: Runtime,
    *,
    divisor: int | Sequence[int] = 1,
    max_ratio: float | Sequence[float] = 0.7,
    dimensions: Sequence[Dimension] = ("width",),
    spared: Sequence[str] = (),
    budgets: Sequence[Budget] = (),
    seed: int = 0,
) -> LatencyModel:
    """Profile random sub-nets between a budget's least and the full network, and fit a model of each layer to them.

    Profiling itself takes time for each operator, so the sum over layers is then brought to the milliseconds of whole
    networks, measured beside the full one: at each image size by a factor and a constant for each layer that is left.
    What half of the networks give tells the error on the others. At last all is brought to networks drawn at the
    budgets, which may lack blocks and see smaller images, by one more factor and an offset. What was fitted for the
    same network, runtime, device and threads before is used again.

    Args:
        divisor, max_ratio, dimensions, spared: as in `Space`: how the search will draw.
        budgets: of the search; those on milliseconds count.
    """
    started = time.perf_counter()
    file = _cache_file(graph, runtime, divisor, max_ratio)
    with evaluation_mode(model):
        subject = _Subject(
            model=model,
            graph=graph,
            load=StrategyTimer(model, graph, importance, runtime).load,
            divisor=divisor,
            max_ratio=max_ratio,
            seed=seed,
        )
        full_ms = min(take_turns([subject.load(subject.full)], TURNS)[0])
        found = _known(file)
        if found is not None:
            say(f"milliseconds in {found.place}: layers as fitted before, in {file}")
            found = found.adjusted(full_ms / found.full_ms, 0.0, full_ms)
        else:
            found = _fit(subject, runtime.place, full_ms)
            write_cache(file, replace(found, seconds=round(time.perf_counter() - started, 1)).to_dict())
        found = _fit_to_budgets(subject, found, budgets, dimensions, spared)
    return replace(found, seconds=round(time.perf_counter() - started, 1))


def _fit(subject: _Subject, place: Place, full_ms: float) -> LatencyModel:
    """From profiles and measurements of sub-nets of all widths."""
    started, graph = time.perf_counter(), subject.graph
    drawn = subject.draw(PROFILED + MEASURED)
    rounds = int(np.clip(1000 * SECONDS / PROFILED / (1.2 * full_ms) - 2, *ROUNDS))
    profiles = [subject.load(subject.full).profile(rounds)]
    for number in progress_bar(range(PROFILED), "profiling", unit="sub-net", delay=2, leave=False):
        if number >= LEAST and time.perf_counter() - started > SECONDS:
            break
        profiles.append(subject.load(drawn[number]).profile(rounds))
    profiled = np.array([graph.widths, *(one.widths for one in drawn[: len(profiles) - 1])])
    layers, constant = fit_layers(subject.model, graph, profiled, profiles)
    bare = WholeTime(image_size=graph.image_size)
    raw = LatencyModel(
        place=place, layers=tuple(layers), constant=constant, whole=(bare,), full_ms=full_ms, error=float("inf")
    )
    chosen = [subject.full, *drawn[PROFILED:]]
    truth = _measure(subject, chosen)
    held_out = np.arange(len(truth)) % 2 == 0
    held_out[0] = False  # the full network is what fractions are of
    layers_ms, num_layers = raw.sum_layers(graph, strategy_rows(graph, chosen))
    guess = _fit_whole(bare, layers_ms[~held_out], num_layers[~held_out], truth[~held_out])(layers_ms, num_layers)
    error = float(np.mean(np.abs(guess / truth - 1)[held_out]))
    say(
        f"milliseconds in {place}: {len(profiles)} profiles in {time.perf_counter() - started:.0f} s; error "
        f"{error:.1%}, rank correlation {spearmanr(guess[held_out], truth[held_out]).statistic:.2f} on "
        f"{held_out.sum()} sub-nets that were not fitted to"
    )
    whole = [_fit_whole(bare, layers_ms, num_layers, truth)]
    for size in graph.image_sizes:
        if size != graph.image_size:
            resized = [replace(one, image_size=size) for one in chosen[: 1 + AT_SIZE]]
            sums = layers_ms[: 1 + AT_SIZE], num_layers[: 1 + AT_SIZE]
            whole.append(_fit_whole(WholeTime(image_size=size), *sums, _measure(subject, resized)))
    return replace(raw, whole=tuple(whole), full_ms=float(truth[0]), error=error)


def _fit_whole(bare: WholeTime, layers_ms: np.ndarray, num_layers: np.ndarray, truth: np.ndarray) -> WholeTime:
    factor, per_layer = _fit_sum([layers_ms, num_layers], truth)
    return replace(bare, factor=factor, per_layer=per_layer)


def _fit_to_budgets(
    subject: _Subject,
    found: LatencyModel,
    budgets: Sequence[Budget],
    dimensions: Sequence[Dimension],
    spared: Sequence[str],
) -> LatencyModel:
    """Brought to the milliseconds of networks at the budgets, for the model is the best there where it is fitted."""
    random, drawn = np.random.default_rng((subject.seed, 1)), [subject.full]
    for budget in budgets:
        if "latency" not in budget.limits:
            continue
        try:
            bounds = Bounds(subject.graph, budget, found)
            space = Space(bounds, subject.divisor, subject.max_ratio, dimensions, spared)
        except EagleEyeError:  # out of reach, which the search says once the model is final
            continue
        for _ in range(AT_BUDGET):
            frames = space.draw_frames([random])
            drawn.append(space.strategy(space.widths(space.shift(space.draw(random)[None], frames), frames)[0]))
    if len(drawn) == 1:
        return found
    predicted, truth = found.predict(subject.graph, strategy_rows(subject.graph, drawn)), _measure(subject, drawn)
    factor, offset = _fit_sum([predicted, np.ones(len(drawn))], truth)
    return found.adjusted(factor, offset, float(truth[0]))


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


def _fit_sum(columns: Sequence[np.ndarray], truth: np.ndarray) -> tuple[float, float]:
    """The factors of two columns whose sum is the measured milliseconds: least squares of relative errors, then once
    more without what something else disturbed."""
    parts = np.stack(columns, axis=1) / truth[:, None]
    sound = np.ones(len(truth), dtype=bool)
    for _ in range(2):
        factors = np.linalg.lstsq(parts[sound], np.ones(sound.sum()), rcond=None)[0]
        misses = np.abs(parts @ factors - 1)
        sound = misses <= 3 * np.median(misses) + 1e-3
    return float(factors[0]), float(factors[1])


def _measure(subject: _Subject, strategies: Sequence[Strategy]) -> np.ndarray:
    """Milliseconds of whole networks.

    They take turns with the full one, a few at a time; what counts is their part of its milliseconds.
    """
    full, relative, full_times = subject.load(subject.full), list[float](), list[float]()
    starts = range(0, len(strategies), TOGETHER)
    for start in progress_bar(starts, "measuring sub-nets", unit="turn", delay=2, leave=False):
        programs = [subject.load(one) for one in strategies[start : start + TOGETHER]]
        full_ms, *times = (min(turns) for turns in take_turns([full, *programs], TURNS))
        relative += [ms / full_ms for ms in times]
        full_times.append(full_ms)
    return np.array(relative) * min(full_times)


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
