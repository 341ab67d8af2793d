"""What a search is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

from eagleeye_hf.errors import EagleEyeError
from eagleeye_hf.strategies.budget import BOUNDS, Budget
from eagleeye_hf.strategies.sampling import Sampler

Method = Literal["random", "evolution", "uniform", "global"]
Bound = float | Sequence[float] | None


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """Which strategies to try, and how many images each gets."""

    macs: Bound = 0.5
    """Budget of MACs: a fraction of the full model, or an absolute number; several give several budgets in one
    search."""
    params: Bound = None
    """Budget of parameters, likewise; one number holds for all budgets."""
    latency_ms: Bound = None
    """Budget of milliseconds, likewise."""
    tolerance: float = 0.005
    """How far the budget may be missed, as a fraction of the full model."""
    divisor: int = 1
    """Widths are multiples of it."""
    max_ratio: float = 0.7
    """The largest fraction of channels removed from a group."""
    method: Method = "evolution"
    """`random`; `evolution`: mutation and crossover of the best so far; `uniform`: one ratio everywhere; `global`: the
    least important channels of the whole network go."""
    sampler: Sampler = "projected"
    """How random strategies meet the budget; `paper` throws away those that do not."""
    candidates: int | None = 100
    """Strategies to score per budget, the uniform one included; None: as many as `minutes` allow."""
    minutes: float | None = None
    """Stop after this time, at the end of a generation."""
    stages: tuple[float, ...] = (0.0625, 0.25, 1.0)
    """Shares of the calibration and holdout images, for all candidates, then for the better part."""
    promote: float = 0.1
    """The part that goes on to the next stage."""
    generation: int = 32
    """Candidates, all budgets together, between two looks at the results; the same for any number of processes."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name, valid, meaning in (
            ("candidates", self.candidates is None or self.candidates >= 1, "at least 1"),
            ("minutes", self.minutes is None or self.minutes > 0, "above 0"),
            ("promote", 0 < self.promote <= 1, "in (0, 1]"),
            ("generation", self.generation >= 1, "at least 1"),
            ("stages", _valid_stages(self.stages), "rising shares in (0, 1], the last one 1"),
            ("method", self.method in get_args(Method), f"one of {', '.join(get_args(Method))}"),
            ("sampler", self.sampler in get_args(Sampler), f"one of {', '.join(get_args(Sampler))}"),
        ):
            if not valid:
                raise EagleEyeError(f"`{name}` is {meaning}; got {getattr(self, name)}")
        if self.candidates is None and self.minutes is None:
            raise EagleEyeError("a search needs an end: give `candidates` or `minutes`")
        _ = self.budgets

    @property
    def budgets(self) -> tuple[Budget, ...]:
        """One budget per number in the longest list."""
        lists = {name: list(value) for name in BOUNDS if isinstance(value := getattr(self, name), Sequence)}
        lengths = {len(values) for values in lists.values()}
        if len(lengths) > 1 or 0 in lengths:
            raise EagleEyeError(
                "several budgets need equally many numbers in each list; got "
                + ", ".join(f"`{name}={values}`" for name, values in lists.items())
            )
        columns = {name: lists.get(name, [getattr(self, name)] * max(lengths, default=1)) for name in BOUNDS}
        rows = (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))
        return tuple(Budget(**row, tolerance=self.tolerance) for row in rows)


def _valid_stages(stages: Sequence[float]) -> bool:
    rising = all(a < b for a, b in pairwise(stages))
    return bool(stages) and rising and stages[0] > 0 and stages[-1] == 1
