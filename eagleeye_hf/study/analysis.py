"""From what happened to sub-nets to tables: rows with named columns, the same in CSV, JSON and reports."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from eagleeye_hf.evaluation.metrics import Metrics
from eagleeye_hf.study.details import Details
from eagleeye_hf.study.journal import HOLDOUT, TEST, Finished
from eagleeye_hf.study.pool import Choice
from eagleeye_hf.study.scores import MACS, PARAMS, SEARCH, higher_is_better
from eagleeye_hf.study.statistics import Estimate, estimate, kendall, pearson, regret, spearman, top_half

Row = dict[str, Any]
COMBINED = "combined loss"
"""The mean of the losses of three variants, each in standard deviations over the pool."""
COMBINED_OF = ("adaptive loss", "compensated loss", "matched loss")
TUNED = "holdout top-1 after fine-tuning"
"""No score, for it is known too late: what accuracy on the holdout images says of that on the test images."""
CHANCE = "random choice"
LEADERS, CHOICE = 8, "search choice"
"""As a search chooses: so many leaders by its score, then by the matched loss; a number is the place in that order."""


def subnet_rows(lines: Iterable[Finished], full: Mapping[str, int]) -> list[Row]:
    """A row per sub-net: what it costs, its scores, and its accuracy after fine-tuning."""
    rows = []
    for line in lines:
        found = line.candidate
        row: Row = {"index": found.index, "budget": found.budget, "origin": found.origin}
        row |= {"macs": found.cost.macs, "params": found.cost.params}
        row |= {"macs_kept": found.cost.macs / full["macs"], "params_kept": found.cost.params / full["params"]}
        row |= {name: line.mean(name) for name in line.scores}
        row["search loss"] = found.score.loss if found.score else None
        row |= {"test top-1": line.tuned[TEST].top1, "holdout top-1": line.tuned[HOLDOUT].top1}
        row |= {"test loss": line.tuned[TEST].loss, "test top-1 error": _error(line.tuned[TEST])}
        row |= {f"seconds {name}": value for name, value in line.seconds.items()}
        rows.append(row)
    return rows


def _error(metrics: Metrics) -> float:
    """The standard error of an accuracy, as that of a binomial."""
    return math.sqrt(metrics.top1 * (1 - metrics.top1) / metrics.num_images)


def pool_scores(pool: Sequence[Finished]) -> dict[str, np.ndarray]:
    """Every score of the sub-nets of one budget, the higher the better."""
    scores = {name: np.array([line.mean(name) for line in pool]) for name in pool[0].scores}
    scores[f"{SEARCH} loss"] = np.array([line.candidate.score.loss for line in pool])  # type: ignore[union-attr]
    scores |= {MACS: np.array([float(line.candidate.cost.macs) for line in pool])}
    scores |= {PARAMS: np.array([float(line.candidate.cost.params) for line in pool])}
    if all(name in scores for name in COMBINED_OF):
        parts = [scores[name] for name in COMBINED_OF]
        scores[COMBINED] = np.mean([(part - part.mean()) / max(float(part.std()), 1e-12) for part in parts], axis=0)
    if "matched loss" in scores:
        leaders = np.argsort(scores[f"{SEARCH} loss"], kind="stable")[:LEADERS]
        order = scores[f"{SEARCH} loss"].argsort(kind="stable").argsort(kind="stable").astype(float)
        order[leaders] = scores["matched loss"][leaders].argsort().argsort()
        scores[CHOICE] = order
    return {name: values if higher_is_better(name) else -values for name, values in scores.items()}


def correlation_rows(pool: Sequence[Finished], budget: str) -> list[Row]:
    """How well each score of one budget's pool foretold the test accuracy after fine-tuning, the best first."""
    accuracy = 100 * np.array([line.tuned[TEST].top1 for line in pool])
    certainty = -np.array([line.tuned[TEST].loss for line in pool])
    scores = pool_scores(pool)
    scores[TUNED] = np.array([line.tuned[HOLDOUT].top1 for line in pool])
    better = top_half(accuracy)
    rows = []
    for name, values in scores.items():
        row: Row = {"budget": budget, "score": name, "subnets": len(pool)}
        statistics = {"pearson": pearson, "spearman": spearman, "kendall": kendall, "regret": regret}
        for title, statistic in statistics.items():
            row |= _spread(title, estimate(statistic, values, accuracy))
        row |= _spread("top_half_spearman", estimate(spearman, values[better], accuracy[better]))
        row |= _spread("loss_spearman", estimate(spearman, values, certainty))
        rows.append(row)
    rows.sort(key=lambda row: (row["spearman"] is None, -(row["spearman"] or 0.0), row["score"]))
    by_chance = float(accuracy.max() - accuracy.mean())
    rows.append({"budget": budget, "score": CHANCE, "subnets": len(pool), "regret": by_chance})
    return rows


def _spread(name: str, found: Estimate) -> Row:
    """Three columns; empty where the score does not vary."""
    values = {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
    return {column: value if np.isfinite(value) else None for column, value in values.items()}


def layer_rows(details: Sequence[Details], table: str, budget: str) -> list[Row]:
    """Medians over sub-nets of what was found per layer, in the order of the layers."""
    by_layer: dict[str, list[Row]] = {}
    for one in details:
        for row in getattr(one, table):
            by_layer.setdefault(row["layer"], []).append(row)
    numbers = [key for key, value in getattr(details[0], table)[0].items() if isinstance(value, float)]
    return [
        {"budget": budget, "depth": depth, "layer": layer}
        | {key: float(np.median([row[key] for row in rows])) for key in numbers}
        for depth, (layer, rows) in enumerate(by_layer.items(), 1)
    ]


def histogram_of(details: Sequence[Details]) -> dict[str, list[float]]:
    """Weights of all layers and sub-nets before and after fine-tuning, as parts of all."""
    sums = {when: np.sum([row[when] for one in details for row in one.weights], axis=0) for when in ("before", "after")}
    return {when: (counts / counts.sum()).tolist() for when, counts in sums.items()}


def image_rows(details: Sequence[Details], accuracy: Mapping[int, float], budget: str) -> list[Row]:
    """Rank correlation with the accuracy, and noise, by how many images a score takes.

    The correlation is the mean over draws of calibration images and over disjoint parts of the holdout images; the
    noise is the spread of one sub-net's loss over those draws, as a fraction of the spread between sub-nets.
    """
    truth = np.array([accuracy[one.index] for one in details])
    settings: dict[tuple[str, int], list[int]] = {}
    for place, row in enumerate(details[0].images):
        settings.setdefault((row["form"], row["calibration_images"]), []).append(place)
    rows = []
    for (form, num), places in settings.items():
        losses = np.array([[one.images[place]["losses"] for place in places] for one in details])
        seconds = float(np.median([one.images[place]["seconds"] for one in details for place in places]))
        each = float(np.median([one.images[p]["seconds_per_holdout_image"] for one in details for p in places]))
        blocks, size = losses.shape[2], 1
        block = details[0].images[places[0]]["holdout_images"] // blocks
        while size <= blocks:
            parts = losses[:, :, : blocks // size * size].reshape(len(details), len(places), -1, size).mean(3)
            found = spearman(-parts.reshape(len(details), -1).T, np.broadcast_to(truth, (parts[0].size, len(truth))))
            between = float(parts.mean((1, 2)).std())
            within = float(np.sqrt(parts.var(1, ddof=1).mean())) if len(places) > 1 else None
            rows.append(
                {
                    "budget": budget,
                    "form": form,
                    "subnets": len(details),
                    "calibration_images": num,
                    "holdout_images": size * block,
                    "spearman": float(np.mean(np.nan_to_num(found))),
                    "spearman_lowest": float(np.min(np.nan_to_num(found))),
                    "noise": None if within is None else within / max(between, 1e-12),
                    "seconds": seconds + each * size * block,
                }
            )
            size *= 2
    return rows


def comparator_rows(
    choices: Iterable[Choice],
    lines: Mapping[int, Finished],
    pools: Sequence[Sequence[Finished]],
    budgets: Sequence[str],
    full: Mapping[str, int],
) -> list[Row]:
    """What each method of search chose, and how it fine-tuned beside the uniform strategy and the random pool.

    Args:
        pools: the random sub-nets of each budget.
    """
    rows = []
    for choice in choices:
        line, pool = lines[choice.index], pools[choice.budget]
        top1 = line.tuned[TEST].top1
        uniform = next(one for one in pool if one.candidate.origin == "uniform").tuned[TEST].top1
        rows.append(
            {
                "budget": budgets[choice.budget],
                "method": choice.method,
                "index": choice.index,
                "candidates": choice.candidates,
                "seconds": choice.seconds,
                "adaptive loss": line.mean("adaptive loss"),
                "test top-1": top1,
                "above_uniform": 100 * (top1 - uniform),
                "better_than": float(np.mean([top1 > one.tuned[TEST].top1 for one in pool])),
                "macs_kept": line.candidate.cost.macs / full["macs"],
                "params_kept": line.candidate.cost.params / full["params"],
            }
        )
    return sorted(rows, key=lambda row: (budgets.index(row["budget"]), row["test top-1"]))
