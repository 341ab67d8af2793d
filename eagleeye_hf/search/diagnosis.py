"""When scores say nothing: what is wrong, and what to do."""

from __future__ import annotations

import math
from collections.abc import Sequence

from eagleeye_hf.evaluation.preparation import FullScores
from eagleeye_hf.search.candidate import Candidate, rank_candidates

NEAR_CHANCE = 2.0
"""What is reported says little below this many times the chance level."""
MISLED = 0.05
"""What recomputed statistics may cost the full network before something is said."""
STANDARD_ERRORS = 3.0
"""Of a binomial distribution: how far above the chance level a guess may come by luck."""


def diagnose_full_model(full: FullScores) -> str | None:
    """What the full model's own scores on the holdout images say about the data, if anything."""
    unchanged, adaptive = full.unchanged.reported, full.adaptive.reported
    limit = _limit(full, full.unchanged.num_images)
    if unchanged >= limit and adaptive >= limit:
        return _diagnose_calibration(full)
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


def _diagnose_calibration(full: FullScores) -> str | None:
    """Whether the calibration images mislead: recomputed from them, statistics cost the full network accuracy."""
    before, after, images = full.unchanged.reported, full.adaptive.reported, full.unchanged.num_images
    luck = STANDARD_ERRORS * math.sqrt(2 * max(before * (1 - before), 0) / max(images, 1))
    if before - after <= max(MISLED, luck):
        return None
    return (
        f"recomputing statistics from the calibration images costs the full model {100 * (before - after):.1f} points "
        f"on the holdout images ({before:.1%} to {after:.1%}), and sub-nets pay that, too: these are not images as it "
        "was trained on, say of a few of its classes. Give images that cover its classes, or train it on these first "
        "(`--adapt-epochs`), or give more of them, if there are fewer than some hundred."
    )


def diagnose_scores(candidates: Sequence[Candidate], full: FullScores | None) -> str | None:
    """Whether the best candidate, on the most images, is better than guessing, and what to do if it is not.

    Args:
        candidates: of one budget.
    """
    failed = [c for c in candidates if c.score is None and c.status != "not scored"]
    if failed and len(failed) > len(candidates) // 2:
        return f"{len(failed)} of {len(candidates)} candidates could not be scored; the first: {failed[0].status}"
    leaders = rank_candidates(candidates)
    best = leaders[0].score if leaders else None
    if full is None or best is None:
        return None
    if best.reported >= _limit(full, best.num_images) and best.loss < full.chance.loss:
        return None
    if min(full.unchanged.reported, full.adaptive.reported) < _limit(full, full.unchanged.num_images):
        return None  # said already, and the cause
    return (
        f"the best candidate scores {best.reported:.2%} on {best.num_images:,} images (loss {best.loss:.2f}), near the "
        f"chance level of {full.chance.reported:.1%}; the full model scores {full.unchanged.reported:.1%}, so the data "
        "is right. The ranking may be noise. Try a milder budget (or several steps with fine-tuning between them), "
        "compensated scores, more calibration images, or a smaller `max_ratio`."
    )


def _limit(full: FullScores, num_images: int) -> float:
    """Scores below it may be guesses: a multiple of the chance level and, on few images, what luck adds to it.

    Never above the middle between chance and perfection.
    """
    chance = full.chance.reported
    luck = STANDARD_ERRORS * math.sqrt(max(chance * (1 - chance), 0) / max(num_images, 1))
    return min(max(NEAR_CHANCE * chance, chance + luck), 0.5 + 0.5 * chance)
