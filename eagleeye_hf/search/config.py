"""What a search is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Literal

from tyro.conf import arg

from eagleeye_hf.configs import Within, check_fields
from eagleeye_hf.errors import EagleEyeError
from eagleeye_hf.strategies.budget import UNITS, Budget
from eagleeye_hf.strategies.frames import Dimension
from eagleeye_hf.strategies.keeping import parse_keep
from eagleeye_hf.strategies.sampling import Sampler

Bound = Annotated[float | str | tuple[float | str, ...] | None, arg(metavar="NUMBER [NUMBER ...]")]
Method = Literal["random", "evolution", "uniform", "global"]
GENERATION, SMALLEST_GENERATION, GENERATIONS = 16, 4, 8
"""Candidates of a generation, at most and at least, and how many generations there are between these limits."""


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """Which strategies to try, and how many images each gets."""

    macs: Bound = None
    """MACs to keep: a fraction of the full network, or an absolute number as 300M; several numbers give several budgets
    in one search, and where several bounds have lists, the first numbers of all make the first budget, and so on. Half
    of the MACs, where no budget is given."""
    params: Bound = None
    """Parameters to keep, likewise; one number holds for all budgets."""
    latency: Bound = None
    """Milliseconds of a forward pass to keep in `runtime`, likewise: 0.5, or with a unit 4.2ms or 800us; predicted for
    candidates, measured for the best of them."""
    tolerance: Annotated[float, Within("(0, 1)")] = 0.005
    """How far the budget may be missed, as a fraction of the full network."""
    divisor: Annotated[int, Within("[1, inf)")] | Literal["auto"] = "auto"
    """Widths are multiples of this many channels; auto: the smallest multiple at which the runtime is fast, measured
    once on this machine (8 where it can't be), less in narrow groups and where the budget could hardly be met."""
    max_ratio: Annotated[float, Within("(0, 1)")] = 0.7
    """The largest fraction of channels removed from a group."""
    keep: tuple[Annotated[str, arg(metavar="PATTERN")], ...] = ()
    """Layers whose output channels all stay, by name or pattern (`blocks.0.*`); of NAME=0.3 at most
    30% go."""
    dimensions: tuple[Dimension, ...] = ("width",)
    """What may change: `width` (channels), `depth` (which residual blocks there are), `size` (of the image)."""
    image_sizes: tuple[Annotated[int, Within("[1, inf)")], ...] = ()
    """Sides of the images to choose from, in pixels, where `dimensions` has `size`; by default those between half of
    the network's own (or four of its strides) and all of it that its stride divides."""
    method: Method = "evolution"
    """`random`; `evolution`: mutation and crossover of the best so far; `uniform`: one ratio everywhere; `global`: the
    least important channels of the whole network go."""
    sampler: Sampler = "projected"
    """How random strategies meet the budget; `paper` throws away those that do not."""
    candidates: Annotated[int, Within("[1, inf)")] | None = 200
    """Strategies to score per budget, the uniform one included; None: as many as `minutes` allow."""
    minutes: Annotated[float, Within("(0, inf)")] | None = None
    """Stop proposing in time for the last stage to end after about this time."""
    stages: tuple[Annotated[float, Within("(0, 1]")], ...] = (0.0625, 0.25, 1.0)
    """Fractions of the calibration and holdout images, for all candidates, then for the better part; larger ones on a
    device so fast that images take less time than what a candidate costs besides."""
    promote: Annotated[float, Within("(0, 1]")] = 0.1
    """The part that goes on to the next stage; to the last in the end, in multiples of 8."""
    matched: bool = True
    """The last stages train each candidate's layers without labels before they score, three times as many for 16 steps
    and then the last ones for 64, fewer where calibration images are few: nearer to what training will make of it, and
    comparable between networks of other depths and image sizes."""
    generation: Annotated[int, Within("[1, inf)")] | None = None
    """Candidates, all budgets together, between two looks at the results, while the generation after is scored: as many
    as are scored at a time, or more. 16; for an evolution of few candidates an eighth of them, at least 4. Results
    depend on it, and not on the number of processes."""

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.stages or self.stages[-1] != 1 or any(a >= b for a, b in pairwise(self.stages)):
            raise EagleEyeError(f"`stages` are rising fractions, the last one 1; got {self.stages}")
        if self.candidates is None and self.minutes is None:
            raise EagleEyeError("`candidates=None`: a search needs an end; give `candidates`, or `minutes`, as 30")
        if not self.dimensions or len(set(self.dimensions)) < len(self.dimensions):
            raise EagleEyeError(f"`dimensions` are some of width, depth and size, each once; got {self.dimensions}")
        if self.image_sizes and "size" not in self.dimensions:
            sizes, dimensions = (" ".join(map(str, values)) for values in (self.image_sizes, self.dimensions))
            raise EagleEyeError(
                f"`image_sizes={sizes}` needs `size` among `dimensions`, which is {dimensions}; add it, or leave out "
                "the sizes"
            )
        if self.dimensions != ("width",) and (self.sampler == "paper" or self.method == "global"):
            raise EagleEyeError("`sampler=paper` and `method=global` change widths alone; give `--dimensions width`")
        _ = self.budgets, parse_keep(self.keep)

    @property
    def generation_size(self) -> int:
        """Candidates of a generation, of each budget."""
        num = self.generation
        if num is None:
            few = self.candidates is not None and self.method == "evolution"
            every = (self.candidates or 1) * len(self.budgets) if few else GENERATION * GENERATIONS
            num = min(GENERATION, max(SMALLEST_GENERATION, every // GENERATIONS))
        return max(1, num // len(self.budgets))

    @property
    def budgets(self) -> tuple[Budget, ...]:
        """One budget per number in the longest list; half the MACs, where there is no bound at all."""
        bounds = {name: getattr(self, name) for name in UNITS}
        lists = {name: list(value) for name, value in bounds.items() if _is_list(value)}
        lengths = {len(values) for values in lists.values()}
        if len(lengths) > 1 or 0 in lengths:
            raise EagleEyeError(
                "several budgets need equally many numbers in each list; got "
                + ", ".join(f"`{name}={values}`" for name, values in lists.items())
            )
        if all(value is None for value in bounds.values()):
            bounds["macs"] = 0.5
        columns = {name: lists.get(name, [value] * max(lengths, default=1)) for name, value in bounds.items()}
        rows = (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))
        return tuple(Budget(**row, tolerance=self.tolerance) for row in rows)


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)
