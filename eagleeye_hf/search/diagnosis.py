"""When scores say nothing: what is wrong, and what to do."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from eagleeye_hf.search.result import Candidate

NEAR_CHANCE = 2.0
"""A top-1 below this many times the chance level says little."""


def diagnose_full_model(full: Mapping[str, float]) -> str | None:
    """What the full model's own scores on the holdout images say about the data, if anything.

    Args:
        full: `classes`, `top1` with the model's own statistics, `adaptive_top1` with recomputed ones.
    """
    own, adaptive = full["top1"], full["adaptive_top1"]
    limit = _limit(full)
    if own >= limit and adaptive >= limit:
        return None
    scores = f"the full model scores {own:.1%} on the holdout images, {adaptive:.1%} with recomputed statistics"
    if own < limit and adaptive < limit:
        return (
            f"{scores}; chance is {1 / full['classes']:.1%}. No sub-net can do better. Check that the weights are "
            "those of a trained network, that labels have the order the model was trained with, and the preprocessing "
            "(mean, std, size, RGB) in the model's `pretrained_cfg`."
        )
    if own < limit:
        return (
            f"{scores}: its statistics do not fit these images. Check the preprocessing (mean, std, size, RGB); "
            "the search can go on, since it recomputes statistics."
        )
    return (
        f"{scores}: recomputing breaks it. Give more calibration images, in batches of 32 or more, "
        "and check that they are drawn like the holdout images."
    )


def diagnose_scores(candidates: Sequence[Candidate], full: Mapping[str, float] | None) -> str | None:
    """Whether the best candidate is better than guessing, and what to do if it is not."""
    failed = [c for c in candidates if c.status not in ("ok", "not scored")]
    scored = [c for c in candidates if c.scored]
    if failed and len(failed) > len(candidates) // 2:
        return f"{len(failed)} of {len(candidates)} candidates could not be scored; the first: {failed[0].status}"
    if full is None or not scored:
        return None
    best_top1 = max(c.top1 or 0.0 for c in scored)
    best_loss = min(c.loss for c in scored if c.loss is not None)
    if best_top1 >= _limit(full) and best_loss < math.log(full["classes"]):
        return None
    if diagnose_full_model(full):
        return None  # said already, and the cause
    return (
        f"the best candidate scores {best_top1:.1%} (loss {best_loss:.2f}), near the chance level of "
        f"{1 / full['classes']:.1%}; the full model scores {full['top1']:.1%} on the same images, so the data is "
        "right. The ranking may be noise. Try a milder budget (or several steps with fine-tuning between them), "
        "`compensate`, more calibration images, or a smaller `max_ratio`."
    )


def _limit(full: Mapping[str, float]) -> float:
    return min(NEAR_CHANCE / full["classes"], 0.5 + 0.5 / full["classes"])
