"""Everything that a study's report says, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eagleeye_hf.evaluation.metrics import Metrics
from eagleeye_hf.search.candidate import Candidate
from eagleeye_hf.study.analysis import (
    Row,
    comparator_rows,
    correlation_rows,
    histogram_of,
    image_rows,
    layer_rows,
    subnet_rows,
)
from eagleeye_hf.study.details import EDGES, Details
from eagleeye_hf.study.findings import describe_findings
from eagleeye_hf.study.journal import TEST, Finished
from eagleeye_hf.study.pool import Chosen


def make_facts(
    settings: Mapping[str, Any],
    chosen: Chosen,
    lines: Mapping[int, Finished],
    details: Mapping[int, Details],
    full: Metrics,
) -> dict[str, Any]:
    """
    Args:
        settings: of the journal.
        details: of the pool's sub-nets, or of some of each budget's.
        full: of the full network on the test images.
    """
    budgets = settings["budgets"]
    pools = [[lines[c.index] for c in _pool(chosen, number)] for number in range(len(budgets))]
    examined = [[details[line.index] for line in pool if line.index in details] for pool in pools]
    seen = {budget: found for budget, found in zip(budgets, examined, strict=True) if found}
    known = {candidate.index for candidate in chosen.pool.candidates}
    accuracy = {index: line.tuned[TEST].top1 for index, line in lines.items()}
    tables: dict[str, list[Row]] = {
        "subnets": [row | {"in_pool": row["index"] in known} for row in subnet_rows(lines.values(), settings["full"])],
        "correlation": _joined(map(correlation_rows, pools, budgets)),
        "comparators": comparator_rows(chosen.choices, lines, pools, budgets, settings["full"]),
        "batchnorm": _joined(layer_rows(one, "batchnorm", budget) for budget, one in seen.items()),
        "weights": _joined(layer_rows(one, "weights", budget) for budget, one in seen.items()),
        "images": _joined(image_rows(one, accuracy, budget) for budget, one in seen.items()),
    }
    return {
        "title": f"Study: {settings['model']} on {settings['dataset']}, {'; '.join(budgets)}",
        "command": "eagleeye study --config run.yaml",
        "summary": _summary(settings, full, lines.values()),
        "findings": describe_findings(tables, budgets, settings["compensated"]),
        "budgets": list(budgets),
        "settings": dict(settings),
        "tables": tables,
        "histograms": {budget: histogram_of(one) for budget, one in seen.items()},
        "edges": EDGES.tolist(),
    }


def _pool(chosen: Chosen, budget: int) -> list[Candidate]:
    return [candidate for candidate in chosen.pool.candidates if candidate.budget == budget]


def _joined(parts: Any) -> list[Row]:
    return [row for part in parts for row in part]


def _summary(settings: Mapping[str, Any], full: Metrics, lines: Any) -> list[str]:
    lines = list(lines)
    images = min(settings["train_images"], settings["steps"] * settings["batch_size"])
    seconds = [line.seconds["fine-tuning"] for line in lines]
    macs, params = (settings["full"][name] / 1e6 for name in ("macs", "params"))
    return [
        f"full network: {full.top1:.2%} on {full.num_images:,} test images, {macs:,.1f} M MACs, {params:,.3f} M "
        "parameters",
        f"every sub-net is fine-tuned alike: {settings['epochs']} epochs of {settings['steps']:,} steps, "
        f"{settings['batch_size']} images a step ({images:,} of {settings['train_images']:,} training images an "
        f"epoch), highest learning rate {settings['lr']:g}, the full network's outputs weigh "
        f"{settings['distillation']:g} in the loss; the last epoch's weights are measured "
        f"({sum(seconds) / len(seconds):.0f} s a sub-net)",
        f"scores: {settings['calibration_each']:,} calibration images in each of {settings['draws']} draws, "
        f"{settings['holdout_images']:,} holdout images, {settings['match_steps']} steps of matching, in "
        f"{settings['scored_in']}",
    ]
