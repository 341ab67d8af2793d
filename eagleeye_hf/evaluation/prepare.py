"""How candidates of a search are scored, decided once before it by scoring typical ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import nn

from eagleeye_hf.evaluation.format import (
    Format,
    FormatChoice,
    check_format,
    choose_format,
    native_format,
    time_formats,
)
from eagleeye_hf.evaluation.memory import PART, SMALLEST_STEP
from eagleeye_hf.evaluation.pace import measure_pace
from eagleeye_hf.evaluation.preparation import Draws, FullScores, Preparation
from eagleeye_hf.networks.threads import one_thread
from eagleeye_hf.runtimes.profiling import fit_latency
from eagleeye_hf.strategies.strategy import Strategy
from eagleeye_hf.telling import say

if TYPE_CHECKING:
    from eagleeye_hf.evaluation.score import AdaptiveBNScore

NOISE = 0.25
"""Part of the way from chance to the full network, below which scores with repaired readers rank better."""
LEAST = 1e-3
"""A fraction of the images that is one batch."""
RECORDED = 3
"""Examples that tell whether recorded passes score as thin networks do."""
SAME_SCORE = {False: 1e-3, True: 2e-2}
"""How far losses may differ, relatively, that count as the same; in float32 and in bfloat16."""


def prepare_scoring(score: AdaptiveBNScore, examples: Sequence[Strategy], draws: Draws | None = None) -> Preparation:
    """Measure what a search needs to know once, and set the score so.

    Args:
        examples: strategies to measure on, typical ones of this search.
        draws: how it draws; also fit a model of milliseconds to such.
    """
    if score.device.type == "cuda":
        record_passes(score, examples[:RECORDED])
    if score.wanted_compensation == "auto":
        score.compensate = _must_compensate(score, examples)
    choice = None if score.format else _choose_format(score, examples)
    if choice is not None:
        score.format = choice.chosen
        say(f"scoring in {choice}")
    say(
        f"scoring {score.workers} at a time, about {score.thread_bytes / 1e9:.2f} GB each beside "
        f"{score.images.num_bytes / 1e9:.2f} GB of images, per process"
    )
    latency = None
    if draws is not None:
        latency = fit_latency(score.model, score.graph, score.builder.importance, score.runtime, **vars(draws))
    return Preparation(
        ranks=score.objective.ranks,
        reports=score.objective.reports,
        full=_score_full(score),
        compensate=score.compensate,
        format=choice,
        recorded=score.recorded,
        matches=_can_match(score),
        pace=measure_pace(score, examples[0]) if score.device.type != "cpu" else None,
        latency=latency,
    )


def _can_match(score: AdaptiveBNScore) -> bool:
    if score.matching_parts is None:
        say(
            f"leaders are not matched before they are scored: it takes more than {PART:.0%} of the GPU's memory, even "
            f"by {SMALLEST_STEP} images a step"
        )
    return score.matching_parts is not None


def record_passes(score: AdaptiveBNScore, examples: Sequence[Strategy]) -> bool:
    """Score in the full network's shapes from now on, its passes recorded, where that gives the same scores."""
    format, score.recorded = score.format or Format(channels_last=True), False
    expected = [score.score_part(example, LEAST, format).loss for example in examples]
    score.recorded = True
    try:
        found = [score.score_part(example, LEAST, format).loss for example in examples]
    except (RuntimeError, FloatingPointError) as error:  # a pass waits for the CPU, or divides by what was removed
        say(f"passes are not recorded: {str(error).splitlines()[0]}")
        found = []
    score.recorded = len(found) > 0 and np.allclose(found, expected, rtol=SAME_SCORE[format.bfloat16], atol=0)
    if not score.recorded:
        score.close_network()
    return score.recorded


def _choose_format(score: AdaptiveBNScore, examples: Sequence[Strategy]) -> FormatChoice:
    def build(format: Format) -> nn.Module:
        return score.builder.fill(examples[0], score.compensate, format.channels_last)

    def losses(format: Format) -> list[float]:
        return [score.score_part(example, LEAST, format).loss for example in examples]

    if score.wanted_format == "auto":
        native = native_format(score.device)
        return check_format(native, Format(channels_last=native.channels_last), losses)
    with one_thread():
        speeds = time_formats(build, score.images.calibration[0][0][:32], score.device)
    return choose_format(speeds, losses)


def _must_compensate(score: AdaptiveBNScore, examples: Sequence[Strategy]) -> bool:
    """Whether what typical candidates report is noise, but not with repaired readers."""
    format, full = Format(), Strategy(score.graph.widths)
    model = score.builder.fill(full, False, format.channels_last)
    _, holdout = score.images.take(format, LEAST)
    with one_thread():
        chance = score.objective.chance(model, holdout[0]).reported
        span = score.objective.measure(model, holdout).reported - chance

    def typical(compensate: bool) -> float:
        score.compensate = compensate
        return float(np.median([score.score_part(example, LEAST, format).reported for example in examples]))

    plain = typical(False)
    if not span > 0 or plain - chance > NOISE * span:
        return False
    repaired = typical(True)
    chosen = repaired - plain > NOISE / 2 * span
    if chosen:
        say(
            f"candidates are scored compensated: {score.objective.reports} of a typical one is "
            f"{repaired:.3g} so, {plain:.3g} with recomputed statistics alone (chance is {chance:.3g})"
        )
    return chosen


def _score_full(score: AdaptiveBNScore) -> FullScores:
    format, full = score.format or Format(), Strategy(score.graph.widths)
    model = score.builder.fill(full, score.compensate, format.channels_last)
    _, holdout = score.images.take(format)
    with one_thread(), format.autocast(score.device):
        chance = score.objective.chance(model, holdout[0])
        unchanged = score.objective.measure(model, holdout)
    return FullScores(unchanged=unchanged, adaptive=score.score_part(full, 1.0, format), chance=chance)
