"""What each step of pruning gives."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from eagleeye_hf.evaluation.batchnorm import recalibrate_bn
from eagleeye_hf.evaluation.format import Format
from eagleeye_hf.evaluation.metrics import Metrics
from eagleeye_hf.evaluation.score import AdaptiveBNScore, is_whole
from eagleeye_hf.strategies.strategy import Strategy
from eagleeye_hf.telling import say


def measure_steps(
    score: AdaptiveBNScore, strategy: Strategy, test: Callable[[nn.Module], Metrics], compensate: bool
) -> tuple[nn.Module, dict[str, Metrics]]:
    """Prune, and tell what each step gives: the old statistics, recomputed ones and, if wanted and better, repaired
    readers.

    Returns:
        The pruned network after the last of these steps, and the metrics by the name of the step.
    """
    calibration, _ = score.images.take(Format(), size=strategy.image_size)
    pruned = score.build(strategy, compensate=False)
    metrics = {"vanilla": test(pruned)}
    metrics["adaptive"] = test(recalibrate_bn(pruned, calibration))
    if is_whole(strategy, score.graph):
        own, recomputed = metrics["vanilla"], metrics.pop("adaptive")
        if (own.top1, -own.loss) >= (recomputed.top1, -recomputed.loss):
            say(
                f"the network keeps its own BatchNorm statistics: top-1 is {own.top1:.2%} with them, "
                f"{recomputed.top1:.2%} with recomputed ones"
            )
            return score.build(strategy, compensate=False), metrics
        metrics["adaptive"] = recomputed
    elif compensate:
        repaired = recalibrate_bn(score.build(strategy, compensate=True), calibration)
        found, plain = test(repaired), metrics["adaptive"]
        if (found.top1, -found.loss) > (plain.top1, -plain.loss):
            pruned, metrics["compensated"] = repaired, found
        else:
            say(
                f"compensation is left out: top-1 would be {found.top1:.2%}, and is {plain.top1:.2%} with recomputed "
                "statistics alone; more calibration images may help"
            )
    return pruned, metrics
