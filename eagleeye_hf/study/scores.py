"""Every score of a sub-net."""

from __future__ import annotations

import time
from collections.abc import Callable

from torch import nn

from eagleeye_hf.strategies.strategy import Strategy
from eagleeye_hf.study.material import Material

SEARCH, MACS, PARAMS = "search", "MACs", "parameters"
"""The score by which the search ranks, and two that know nothing of the weights."""


def higher_is_better(name: str) -> bool:
    """Losses and divergences rank the other way round."""
    return name in (MACS, PARAMS) or name.endswith("top-1")


def score_subnet(
    material: Material, strategy: Strategy, match: Callable[[nn.Module, Strategy], nn.Module] | None
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Scores by name, one number per draw; and the seconds that each variant took, per draw.

    Variants are vanilla (old statistics), adaptive (recomputed ones), compensated (readers repaired by least squares
    too) and matched (layers trained without labels after that).

    Args:
        match: trains the compensated network's layers for a few steps without labels; None leaves that out.
    """
    scores: dict[str, list[float]] = {}
    seconds: dict[str, float] = {}

    def add(variant: str, network: nn.Module, started: float, parts: int = 1) -> None:
        for measure, value in material.look(network).means().items():
            scores.setdefault(f"{variant} {measure}", []).append(value)
        seconds[variant] = seconds.get(variant, 0.0) + (time.perf_counter() - started) / parts

    started = time.perf_counter()
    add("vanilla", material.build(strategy), started)
    for draw, images in enumerate(material.draws):
        for variant in ("adaptive", "compensated"):
            started = time.perf_counter()
            thin = material.build(strategy, variant == "compensated", draw)
            add(variant, material.recalibrate(thin, images), started, len(material.draws))
    if match is not None:
        started = time.perf_counter()
        thin = material.recalibrate(material.build(strategy, True), material.draws[0])
        matched = match(thin, strategy).to(material.score.device)
        add("matched", material.recalibrate(matched, material.draws[0]), started)
    return scores, seconds
