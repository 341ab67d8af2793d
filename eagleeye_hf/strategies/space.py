"""The strategies that meet a budget: drawn in it, moved to it, repaired into it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np

from eagleeye_hf.channels.cost import split_rows, strategy_rows
from eagleeye_hf.errors import EagleEyeError
from eagleeye_hf.strategies.budget import Bounds
from eagleeye_hf.strategies.frames import Dimension, Frames
from eagleeye_hf.strategies.strategy import Strategy, multiples_of, round_widths

REPAIRS = 60
"""Single steps of widths that may bring a strategy within the tolerance."""
REPAIRED = 64
"""Strategies that are repaired at a time, so that memory is bounded."""
MAX_TILT = 3000.0
DIMENSIONS: tuple[Dimension, ...] = ("width", "depth", "size")
ALL_THE_SAME = 0.9
"""Part of the milliseconds that the smallest network keeps, where they do not go by widths."""


class Space:
    """The strategies of one network that meet one budget, as rows: widths alone or, where blocks may go or the image
    may shrink, as `strategy_rows` gives them.

    Args:
        divisor: widths are multiples of it; one number, or one per prunable group.
        max_ratio: the largest fraction removed from a group; one number, or one per prunable group.
        dimensions: what may change: widths, which blocks there are (depth), the size of the image.
        spared: names of blocks that stay.
    Raises:
        EagleEyeError: there are none; the message says what is possible.
    """

    def __init__(
        self,
        bounds: Bounds,
        divisor: int | Sequence[int] = 1,
        max_ratio: float | Sequence[float] = 0.7,
        dimensions: Sequence[Dimension] = ("width",),
        spared: Sequence[str] = (),
    ) -> None:
        largest = max_ratio if isinstance(max_ratio, (int, float)) else max(max_ratio, default=0.0)
        if not 0 < largest < 1:
            raise EagleEyeError(f"`max_ratio` is the largest fraction removed, in (0, 1); got {largest}")
        graph = bounds.graph
        if not graph.prunable:
            raise EagleEyeError("`graph` has no prunable group: every channel is pinned; `graph.groups` says why")
        self.bounds, self.divisor, self.graph, self.num_groups = bounds, divisor, graph, len(graph.prunable)
        self.max_ratio = np.broadcast_to(np.asarray(max_ratio, dtype=float), self.num_groups)
        self.prunable = np.array([number for number, group in enumerate(graph.groups) if group.prunable])
        self.full = np.array(graph.widths)
        self.multiples = multiples_of(graph, divisor)
        self.dimensions, self.has_widths, self.spared = tuple(dimensions), "width" in dimensions, tuple(spared)
        self.frames = Frames(bounds, dimensions, spared) if self.dimensions != ("width",) else None
        self.smallest = self.widths(self.max_ratio)
        least = self.widths(self.max_ratio[None], None if self.frames is None else self.frames.least[None])[0]
        if float(bounds.excess(least)[0]) > bounds.budget.tolerance:
            tiny = [
                name for name, limit in bounds.budget.limits.items() if not limit.is_fraction and limit.value < 1000
            ]
            hint = f" (`{tiny[0]}` above 1 is an absolute number; fractions are at most 1)" if tiny else ""
            kept = "" if (self.max_ratio == largest).all() else ", what `keep` spares"
            raise EagleEyeError(
                f"the budget ({bounds.budget}){hint} is out of reach: with `max_ratio={largest:g}`{kept} and "
                f"`divisor={self.divisor_name}` the smallest model still has "
                f"{bounds.describe(least.tolist())}. Raise the budget, or raise `max_ratio`"
                f"{', or lower `divisor`' if self.divisor_name != '1' else ''}{self._of_dimensions()}."
                f"{self._of_launching()}"
            )
        self._tilt = bounds.weights()

    def _of_dimensions(self) -> str:
        others = [name for name in DIMENSIONS if name not in self.dimensions]
        return f", or add {' and '.join(others)} to `dimensions`" if others else ""

    def _of_launching(self) -> str:
        """What to do where milliseconds hardly go by widths."""
        if not self.has_widths:
            return ""
        least = self.bounds.fractions(self.smallest).get("latency")
        if least is None or float(least[0]) < ALL_THE_SAME:
            return ""
        return (
            " There the milliseconds hardly depend on widths, as on a GPU that waits for each layer to be launched: "
            "measure more images at a time with `latency_batch`, or bound `macs`."
        )

    @property
    def divisor_name(self) -> str:
        """As messages give it."""
        return str(self.divisor if isinstance(self.divisor, int) else max(self.divisor))

    def widths(self, ratios: np.ndarray, frames: np.ndarray | None = None) -> np.ndarray:
        """Rows with these ratios, shape `(num, num_prunable)`; where `frames` are given, with those."""
        widths = np.broadcast_to(self.full, (*ratios.shape[:-1], len(self.full))).copy()
        if self.has_widths:
            widths[..., self.prunable] = round_widths(self.full[self.prunable], ratios, self.multiples)
        if frames is None:
            return widths
        return np.hstack([np.where(frames[:, :-1] @ self._takes > 0, self.full, widths), frames])

    @cached_property
    def _takes(self) -> np.ndarray:
        """Which groups go with which block; shape `(num_blocks, num_groups)`."""
        takes = np.zeros((len(self.graph.blocks), len(self.graph.groups)), dtype=np.int64)
        for number, block in enumerate(self.graph.blocks):
            takes[number, list(block.groups)] = 1
        return takes

    def strategy(self, row: np.ndarray) -> Strategy:
        """What a row stands for."""
        widths, removed, sizes = split_rows(self.graph, row)
        if removed is None or sizes is None:
            return Strategy(tuple(widths[0]))
        names = tuple(block.name for block, gone in zip(self.graph.blocks, removed[0], strict=True) if gone)
        size = int(sizes[0])
        return Strategy(tuple(widths[0]), names, None if size == self.graph.image_size else size)

    def frames_of(self, strategies: Sequence[Strategy]) -> np.ndarray | None:
        """The parts beside the widths, as rows; None where only widths change."""
        return None if self.frames is None else strategy_rows(self.graph, strategies)[:, len(self.graph.groups) :]

    @cached_property
    def parts(self) -> list[Space]:
        """The spaces of one dimension alone: those in which there is something to search, where others change, too."""
        found = self.singles() if self.frames is not None and self.frames.num_changing > 1 else {}
        names: dict[str, Dimension] = {"uniform": "width", "depth": "depth"}
        alone = [(name,) for single, name in names.items() if single in found]
        return [Space(self.bounds, self.divisor, self.max_ratio.tolist(), name, self.spared) for name in alone]

    def changed(self, strategy: Strategy) -> tuple[Dimension, ...]:
        """The dimensions in which it is not the full network."""
        differs = strategy.widths != self.graph.widths, bool(strategy.removed_blocks), strategy.image_size is not None
        return tuple(name for name, changed in zip(DIMENSIONS, differs, strict=True) if changed)

    def kinds(self, strategies: Sequence[Strategy]) -> list[str]:
        """What changes in each alone, or which dimension gives most of what has to go."""
        most = ["width"] * len(strategies) if self.frames is None else self.frames.kinds(strategies)
        alone = [len(self.changed(strategy)) < 2 for strategy in strategies]
        return [name if single else f"mostly {name}" for name, single in zip(most, alone, strict=True)]

    def draw_frames(self, randoms: Sequence[np.random.Generator]) -> np.ndarray | None:
        return None if self.frames is None else self.frames.draw(randoms)

    def singles(self) -> dict[str, Strategy]:
        """What meets the budget by one dimension alone, the others as in the full network."""
        found = {"uniform": self.uniform()} if self.reaches_by_widths else {}
        frames = self.frames.singles() if self.frames is not None else {}
        return found | {name: self.strategy(np.append(self.graph.widths, frame)) for name, frame in frames.items()}

    @property
    def reaches_by_widths(self) -> bool:
        """Whether widths alone can meet the budget."""
        return self.has_widths and bool(self.bounds.meets(self.smallest)[0])

    def uniform(self) -> Strategy:
        """The same ratio everywhere; where its steps are too coarse for the tolerance, just below the bound."""

        def along(t: np.ndarray) -> np.ndarray:
            return t[:, None] * self.max_ratio

        return Strategy(tuple(self.widths(along(self.bisect(along, np.zeros(1), np.ones(1))))[0]))

    def project(
        self, ratios: np.ndarray, randoms: Sequence[np.random.Generator], frames: np.ndarray | None = None
    ) -> list[np.ndarray | None]:
        """Rows that meet the budget near these ratios, shape `(num, num_prunable)`; None where none were found.

        Args:
            randoms: one per row, for its repair.
            frames: what the rows have beside widths.
        """
        return self.repair(self.widths(self.shift(ratios, frames), frames), randoms)

    def shift(self, ratios: np.ndarray, frames: np.ndarray | None = None) -> np.ndarray:
        """Move ratios, shape `(num, num_prunable)`, to the budget's surface, all groups of a strategy together.

        Each ratio goes where it would lie had it been drawn from an exponential density instead of a uniform one, the
        steeper the more its group costs. Uniform draws that happen to meet a bound on a sum are distributed so (Gibbs'
        conditioning principle); neither is one corner of the space preferred, nor do draws pile up at a limit.
        """
        place = np.clip(ratios / np.maximum(self.max_ratio, 1e-9), 1e-6, 1 - 1e-6)

        def along(t: np.ndarray) -> np.ndarray:
            return self.max_ratio * _tilted(place, t[:, None] * self._tilt)

        limit = np.full(len(ratios), MAX_TILT)
        shifted = along(self.bisect(along, -limit, limit, frames))
        if frames is not None:
            shifted[self.bounds.meets(self.widths(np.zeros_like(ratios), frames))] = 0.0
        return shifted

    def draw(self, random: np.random.Generator) -> np.ndarray:
        """Ratios uniform in `[0, max_ratio]` (paper, section 3.2), not yet projected."""
        return random.random(self.num_groups) * self.max_ratio

    def bisect(
        self,
        along: Callable[[np.ndarray], np.ndarray],
        low: np.ndarray,
        high: np.ndarray,
        frames: np.ndarray | None = None,
    ) -> np.ndarray:
        """The smallest parameter, hence the heaviest network, that is within the budget."""
        for _ in range(40):
            middle = (low + high) / 2
            fits = self.bounds.excess(self.widths(along(middle), frames)) <= 0
            low, high = np.where(fits, low, middle), np.where(fits, middle, high)
        return high

    def repair(self, widths: np.ndarray, randoms: Sequence[np.random.Generator]) -> list[np.ndarray | None]:
        """Rows that meet the budget: where they don't, single widths change by a step, in random order; None where that
        leads nowhere. A row depends on itself and on its generator alone.
        """
        misses = self.misses(widths)
        fits = misses <= self.bounds.budget.tolerance
        found: list[np.ndarray | None] = [row if fit else None for row, fit in zip(widths, fits, strict=True)]
        pending = [row for row, fitting in enumerate(found) if fitting is None] if self.has_widths else []
        for start in range(0, len(pending), REPAIRED):
            rows = pending[start : start + REPAIRED]
            state = [(row, widths[row], float(misses[row])) for row in rows]
            for _ in range(REPAIRS):
                state = self._step(state, randoms, found)
                if not state:
                    break
        return found

    def misses(self, rows: np.ndarray) -> np.ndarray:
        """How far rows are from the budget's surface; where no width can grow, how far they exceed it."""
        excess = self.bounds.excess(rows)
        whole = (rows[..., : len(self.full)] == self.full).all(-1)
        return np.where(whole, np.maximum(excess, 0.0), np.abs(excess))

    def _step(
        self,
        state: Sequence[tuple[int, np.ndarray, float]],
        randoms: Sequence[np.random.Generator],
        found: list[np.ndarray | None],
    ) -> list[tuple[int, np.ndarray, float]]:
        """A step of each row of `(row, widths, miss)`; what meets the budget goes to `found`, the rest comes back."""
        moves = self._moves(np.stack([widths for _, widths, _ in state]))
        allowed = np.all(moves[..., : len(self.graph.groups)] >= self.smallest, axis=2)
        misses = np.full(allowed.shape, np.inf)
        misses[allowed] = np.abs(self.bounds.excess(moves[allowed])) if allowed.any() else []
        left = []
        for (row, _, miss), steps, missed in zip(state, moves, misses, strict=True):
            inside, better = missed <= self.bounds.budget.tolerance, missed < miss
            if not better.any():
                continue
            pick = randoms[row].choice(np.flatnonzero(inside if inside.any() else better))
            if inside.any():
                found[row] = self._aligned(steps[pick])
            else:
                left.append((row, steps[pick], float(missed[pick])))
        return left

    def _moves(self, widths: np.ndarray) -> np.ndarray:
        """Every group's step down and up; shape `(num, 2 * num_prunable, length of a row)`."""
        full, groups = self.full[self.prunable], np.arange(self.num_groups)
        kept = widths[:, self.prunable]
        moves = np.repeat(widths[:, None], 2 * self.num_groups, axis=1)
        moves[:, groups, self.prunable] = kept - self.multiples
        up = kept // self.multiples * self.multiples + self.multiples
        moves[:, self.num_groups + groups, self.prunable] = np.minimum(up, full)
        return moves

    def _aligned(self, widths: np.ndarray) -> np.ndarray | None:
        """Stepping down from a full width that is no multiple itself would break the divisor."""
        kept, full = widths[self.prunable], self.full[self.prunable]
        return widths if np.all((kept % self.multiples == 0) | (kept == full)) else None


def _tilted(place: np.ndarray, tilt: np.ndarray) -> np.ndarray:
    """The quantile at `place` of the density proportional to `exp(tilt * x)` on `[0, 1]`."""
    up = np.where(tilt >= 0, place, 1 - place)
    steep = np.maximum(np.abs(tilt), 1e-6)
    x = 1 + np.log(up + (1 - up) * np.exp(-steep)) / steep
    return np.clip(np.where(tilt >= 0, x, 1 - x), 0, 1 - 1e-12)
