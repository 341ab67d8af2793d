"""When scores say nothing: what is wrong, and what to do."""

from __future__ import annotations

from collections.abc import Sequence

from eagleeye_hf.evaluation.score import FullScores
from eagleeye_hf.search.candidate import Candidate

NEAR_CHANCE = 2.0
"""What is reported says little below this many times the chance level."""


def diagnose_full_model(full: FullScores) -> str | None:
    """What the full model's own scores on the holdout images say about the data, if anything."""
    unchanged, adaptive = full.unchanged.reported, full.adaptive.reported
    limit = _limit(full)
    if unchanged >= limit and adaptive >= limit:
        return None
    scores = f"the full model scores {unchanged:.1%} on the holdout images, {adaptive:.1%} with recomputed statistics"
    if unchanged < limit and adaptive < limit:
        return (
            f"{scores}; chance is {full.chance.reported:.1%}. No sub-net can do better. Check that the weights are "
            "those of a trained network, that labels have the order the model was trained with, and the preprocessing "
            "(mean, std, size, RGB) in the model's `pretrained_cfg`."
        )
    if unchanged < limit:
        return (
            f"{scores}: its statistics do not fit these images. Check the preprocessing (mean, std, size, RGB); "
            "the search can go on, since it recomputes statistics."
        )
    return (
        f"{scores}: recomputing breaks it. Give more calibration images, in batches of 32 or more, "
        "and check that they are drawn like the holdout images."
    )


def diagnose_scores(candidates: Sequence[Candidate], full: FullScores | None) -> str | None:
    """Whether the best candidate is better than guessing, and what to do if it is not."""
    failed = [c for c in candidates if c.status not in ("ok", "not scored")]
    scores = [c.score for c in candidates if c.scored and c.score]
    if failed and len(failed) > len(candidates) // 2:
        return f"{len(failed)} of {len(candidates)} candidates could not be scored; the first: {failed[0].status}"
    if full is None or not scores:
        return None
    best = max(score.reported for score in scores)
    best_loss = min(score.loss for score in scores)
    if best >= _limit(full) and best_loss < full.chance.loss:
        return None
    if diagnose_full_model(full):
        return None  # said already, and the cause
    return (
        f"the best candidate scores {best:.1%} (loss {best_loss:.2f}), near the chance level of "
        f"{full.chance.reported:.1%}; the full model scores {full.unchanged.reported:.1%} on the same images, so the "
        "data is right. The ranking may be noise. Try a milder budget (or several steps with fine-tuning between "
        "them), compensated scores, more calibration images, or a smaller `max_ratio`."
    )


def _limit(full: FullScores) -> float:
    return min(NEAR_CHANCE * full.chance.reported, 0.5 + 0.5 * full.chance.reported)
