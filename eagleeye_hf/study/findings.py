"""What a study found, in sentences; also where EagleEye's claim does not hold."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from eagleeye_hf.study.analysis import CHANCE, CHOICE, LEADERS, TUNED, Row
from eagleeye_hf.study.scores import PARAMS, SEARCH

PAPER = "the paper reports about 0.8 and about 0 (MobileNetV1 on ImageNet)"
NEARLY = 0.02
"""Rank correlation that fewer images may cost."""


def describe_findings(tables: dict[str, list[Row]], budgets: Sequence[str], compensated: bool) -> dict[str, list[str]]:
    """Sentences by budget.

    Args:
        compensated: whether the search scored with repaired readers.
    """
    found = {}
    for number, budget in enumerate(budgets):
        own = {name: [row for row in rows if row["budget"] == budget] for name, rows in tables.items()}
        pool = [row for row in tables["subnets"] if row["budget"] == number and row["in_pool"]]
        scores = {row["score"]: row for row in own["correlation"]}
        found[budget] = [
            _describe_pool(pool),
            *_describe_claim(scores),
            *_describe_choices(scores, compensated),
            *_describe_best(scores),
            *_describe_comparators(own["comparators"]),
            *(_describe_statistics(own["batchnorm"]) if own["batchnorm"] else []),
            *(_describe_weights(own["weights"]) if own["weights"] else []),
            *(_describe_images(own["images"]) if own["images"] else []),
        ]
    return found


def spread(row: Row, name: str, digits: int = 2) -> str:
    """A number with its interval."""
    if row[name] is None or row[f"{name}_low"] is None:
        return "unknown (it does not vary)"
    return f"{row[name]:.{digits}f} ({row[f'{name}_low']:.{digits}f} to {row[f'{name}_high']:.{digits}f})"


def _describe_pool(pool: Sequence[Row]) -> str:
    top1 = [100 * row["test top-1"] for row in pool]
    params = [row["params_kept"] for row in pool]
    macs, error = np.mean([row["macs_kept"] for row in pool]), np.mean([row["test top-1 error"] for row in pool])
    return (
        f"{len(pool)} random sub-nets with {macs:.1%} of the MACs and {min(params):.0%} to {max(params):.0%} of the "
        f"parameters fine-tune to {min(top1):.2f} to {max(top1):.2f}% on the test images (mean {np.mean(top1):.2f}, "
        f"standard deviation {np.std(top1):.2f} points; one accuracy has a standard error of {100 * error:.2f} by the "
        "number of test images)."
    )


def _describe_claim(scores: dict[str, Row]) -> list[str]:
    vanilla, adaptive, loss = (scores[name] for name in ("vanilla top-1", "adaptive top-1", "adaptive loss"))
    lowest, highest, first, second = (
        -1.0 if row[name] is None else row[name]
        for row, name in (
            (adaptive, "spearman_low"),
            (vanilla, "spearman_high"),
            (adaptive, "spearman"),
            (vanilla, "spearman"),
        )
    )
    if lowest > highest:
        verdict = "The claim holds here"
    elif first > second:
        verdict = "The claim points the right way here, but the intervals overlap"
    else:
        verdict = "The claim does not hold here"
    return [
        f"{verdict}: accuracy with recomputed statistics ranks the fine-tuned accuracy with Spearman "
        f"{spread(adaptive, 'spearman')}, the loss with {spread(loss, 'spearman')}, accuracy with the old statistics "
        f"with {spread(vanilla, 'spearman')}; with the loss after fine-tuning, which is less noisy than accuracy, "
        f"{spread(adaptive, 'loss_spearman')}, {spread(loss, 'loss_spearman')} and {spread(vanilla, 'loss_spearman')}. "
        f"Pearson: adaptive accuracy {spread(adaptive, 'pearson')}, vanilla "
        f"{spread(vanilla, 'pearson')}; {PAPER}.",
        f"Among the half that fine-tunes best, where a choice is made, the adaptive loss has Spearman "
        f"{spread(loss, 'top_half_spearman')}, vanilla accuracy {spread(vanilla, 'top_half_spearman')}.",
    ]


def _describe_choices(scores: dict[str, Row], compensated: bool) -> list[str]:
    search, params = scores[f"{SEARCH} loss"], scores[PARAMS]
    kind = "compensated" if compensated else "adaptive"
    return [
        f"The score by which a search ranks (the {kind} loss, one draw of calibration images) has Spearman "
        f"{spread(search, 'spearman')}; the sub-net that it puts first is {spread(search, 'regret')} points below the "
        f"best of the pool, a random one on average {scores[CHANCE]['regret']:.2f}, the one with the most parameters "
        f"{params['regret']:.2f} (parameters alone: Spearman {spread(params, 'spearman')}).",
        *_describe_leaders(scores),
        f"For comparison: accuracy on the holdout images *after* fine-tuning ranks that on the test images with "
        f"{spread(scores[TUNED], 'spearman')} and a regret of {scores[TUNED]['regret']:.2f}.",
    ]


def _describe_leaders(scores: dict[str, Row]) -> list[str]:
    if CHOICE not in scores:
        return []
    return [
        f"Chosen as a search does by default, among the {LEADERS} leaders of that score by the matched loss, the first "
        f"is {spread(scores[CHOICE], 'regret')} points below the best (Spearman of this order "
        f"{spread(scores[CHOICE], 'spearman')})."
    ]


def _describe_best(scores: dict[str, Row]) -> list[str]:
    early = [row for name, row in scores.items() if name not in (TUNED, CHANCE)]
    early = [row for row in early if row["spearman"] is not None]
    if not early:
        return []
    best = max(early, key=lambda row: row["spearman"])
    least = min(early, key=lambda row: (row["regret"], -row["spearman"]))
    text = (
        f"The best score before fine-tuning is {best['score']}: {spread(best, 'spearman')}, regret {best['regret']:.2f}"
    )
    if least["regret"] < best["regret"]:
        text += f"; the least regret, {least['regret']:.2f}, has {least['score']} (Spearman {least['spearman']:.2f})"
    return [f"{text}."]


def _describe_comparators(rows: Sequence[Row]) -> list[str]:
    told = [
        f"{row['method']} {100 * row['test top-1']:.2f}% ({row['above_uniform']:+.2f} to uniform, better than "
        f"{row['better_than']:.0%} of the pool, {row['params_kept']:.0%} of the parameters)"
        for row in reversed(rows)
    ]
    most = max((row["candidates"] for row in rows), default=0)
    return [
        f"What methods of search choose, fine-tuned alike ({most} candidates where they score any): {'; '.join(told)}."
    ]


def _describe_statistics(rows: Sequence[Row]) -> list[str]:
    ratio = {
        k: np.median([row[f"{k}_full"] / max(row[f"{k}_adaptive"], 1e-9) for row in rows]) for k in ("mean", "variance")
    }
    nearer = np.mean([row["mean_adaptive"] < row["mean_full"] for row in rows])
    return [
        f"Recomputed means are {ratio['mean']:.1f} times as near to those after fine-tuning as the full network's "
        f"(median over layers; nearer in {nearer:.0%} of them), recomputed variances {ratio['variance']:.1f} times."
    ]


def _describe_weights(rows: Sequence[Row]) -> list[str]:
    most = max(rows, key=lambda row: row["change"])
    return [
        f"Fine-tuning moves a layer's weights by {np.median([row['change'] for row in rows]):.0%} of their length "
        f"(median over layers; most in {most['layer']}, {most['change']:.0%}), while their distribution shifts by "
        f"{np.median([row['distance'] for row in rows]):.3f} standard deviations (Wasserstein)."
    ]


def _describe_images(rows: Sequence[Row]) -> list[str]:
    holdout = max(row["holdout_images"] for row in rows)
    exact = [row for row in rows if row["form"] == "exact" and row["holdout_images"] == holdout]
    best = max(row["spearman"] for row in exact)
    enough = next(row for row in exact if row["spearman"] >= best - NEARLY)
    most = exact[-1]
    average = [row for row in rows if row["form"] == "momentum" and row["holdout_images"] == holdout][-1]
    fewest = min(
        (row for row in rows if row["form"] == "exact" and row["calibration_images"] == most["calibration_images"]),
        key=lambda row: (row["spearman"] < most["spearman"] - NEARLY, row["holdout_images"]),
    )
    return [
        f"Over {most['subnets']} of them: {enough['calibration_images']:,} calibration images are enough (Spearman of "
        f"the adaptive loss {enough['spearman']:.2f}, {most['spearman']:.2f} with {most['calibration_images']:,}), and "
        f"{fewest['holdout_images']:,} holdout images ({fewest['spearman']:.2f}). The paper's moving average over "
        f"{average['calibration_images']:,} images has {average['spearman']:.2f}, exact statistics "
        f"{most['spearman']:.2f}."
    ]
