"""What to try next: random strategies, children of the best so far, or one of two baselines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from eagleeye_hf.errors import EagleEyeError
from eagleeye_hf.search.config import SearchConfig
from eagleeye_hf.strategies.sampling import draw_random
from eagleeye_hf.strategies.space import Space
from eagleeye_hf.strategies.strategy import Strategy, ratios_of

PARENTS = 8
"""The best so far, whose children a generation is."""
CROSSED = 0.5
"""Part of the children that has two parents, each group's ratio from either."""
MUTATED = 0.3
"""Part of a child's ratios that changes."""
MUTATION = 0.25
"""Standard deviation of a change, as a fraction of `max_ratio`."""
ATTEMPTS = 30


class Proposal(NamedTuple):
    """A strategy to try, and how it was found."""

    strategy: Strategy
    origin: str


class Proposer:
    """Proposes the strategies of one budget by number; proposals depend on the seed and on the parents alone.

    Where several dimensions may change, every second proposal changes one alone, each in turn, and is a child of such:
    what one dimension can do is a small part of what all can, and often the best of it.

    Args:
        unit_scores: the importance of each unit, per prunable group; what the method `global` goes by.
    """

    def __init__(self, space: Space, config: SearchConfig, seed: int, unit_scores: Sequence[np.ndarray] | None) -> None:
        self.space, self.config, self.seed = space, config, seed
        self._baselines = [Proposal(strategy, name) for name, strategy in space.singles().items()]
        if config.method in ("global", "evolution") and unit_scores is not None and space.reaches_by_widths:
            self._baselines.append(Proposal(global_strategy(space, unit_scores), "global"))
        only_baselines = config.method in ("uniform", "global") or space.dimensions == ("size",)
        self.num_candidates = len(self._baselines) if only_baselines else config.candidates
        """How many there are to propose; None: without end."""

    def propose(self, numbers: range, parents: Sequence[Strategy], seen: set[Strategy]) -> list[Proposal]:
        """One strategy per number.

        Args:
            parents: the best so far, best first; empty in the first generation.
            seen: strategies that need no second try.
        """
        baselines = [self._baselines[number] for number in numbers if number < len(self._baselines)]
        rest = range(max(numbers.start, len(self._baselines)), max(numbers.stop, len(self._baselines)))
        homes = [self._home(parent) for parent in parents]
        known, found, left = set(seen), dict[int, Proposal](), list(rest)
        for space in (*self.space.parts, self.space):
            own = [number for number in left if space is self.space or self._turn(number) is space]
            of_it = [parent for parent, home in zip(parents, homes, strict=True) if home is space]
            found |= self._fill(space, own, of_it[:PARENTS], known)
            left = [number for number in left if number not in found]
        return [*baselines, *(found[number] for number in rest)]

    def _turn(self, number: int) -> Space:
        """Where the strategy of this number comes from."""
        turns = [space for part in self.space.parts for space in (self.space, part)] or [self.space]
        return turns[number % len(turns)]

    def _home(self, strategy: Strategy) -> Space:
        changed = self.space.changed(strategy)
        return next((part for part in self.space.parts if part.dimensions == changed), self.space)

    def _fill(
        self, space: Space, numbers: Sequence[int], parents: Sequence[Strategy], known: set[Strategy]
    ) -> dict[int, Proposal]:
        """A proposal of a space per number; none where an evolution finds but known ones in one dimension alone."""
        if not numbers:
            return {}
        children: dict[int, Strategy | None] = dict.fromkeys(numbers)
        if self.config.method == "evolution" and parents:
            children = self._children(space, numbers, parents, known)
        lacking = [number for number, child in children.items() if child is None]
        try:
            drawn = draw_random(space, self.seed, lacking, self.config.sampler) if lacking else {}
        except EagleEyeError:
            if space is self.space:
                raise
            drawn = {}
        found = {}
        for number, child in children.items():
            strategy = child or drawn.get(number)
            fresh = space is self.space or self.config.method != "evolution" or strategy not in known
            if strategy and (child or fresh):
                known.add(strategy)
                found[number] = Proposal(strategy, "evolution" if child else "random")
        return found

    def _children(
        self, space: Space, numbers: Sequence[int], parents: Sequence[Strategy], known: set[Strategy]
    ) -> dict[int, Strategy | None]:
        """One child per number, unlike those before; None where none is found."""
        first = self._breed(space, parents, [(number, 0) for number in numbers])
        children: dict[int, Strategy | None] = {}
        for number, born in zip(numbers, first, strict=True):
            child = born
            if child is None or child in known:
                later = self._breed(space, parents, [(number, attempt) for attempt in range(1, ATTEMPTS)])
                child = next((born for born in later if born is not None and born not in known), None)
            children[number] = child
            known |= {child} if child else set()
        return children

    def _breed(
        self, space: Space, parents: Sequence[Strategy], tries: Sequence[tuple[int, int]]
    ) -> list[Strategy | None]:
        """The child of each try, (number, attempt); None where it can't be brought into the budget."""
        ratios_of_parents = np.stack([ratios_of(space.graph, parent) for parent in parents])
        randoms = [np.random.default_rng((self.seed, number, attempt, 1)) for number, attempt in tries]
        largest, rows, pairs = space.max_ratio, [], []
        for random in randoms:
            pairs.append(random.integers(len(parents), size=2))
            first, second = ratios_of_parents[pairs[-1]]
            crossed = random.random() < CROSSED
            ratios = np.where(random.random(len(first)) < 0.5, first, second) if crossed else first
            mutated = random.random(len(ratios)) < MUTATED
            noise = random.normal(0, MUTATION * largest, len(ratios))
            rows.append(np.clip(ratios + mutated * noise, 0, largest))
        frames = space.frames_of(parents)
        if space.frames is not None and frames is not None:
            one, other = np.array(pairs).T
            whole = (ratios_of_parents == 0).all(1)
            frames = space.frames.breed(frames[one], frames[other], randoms, whole[one] & whole[other])
        met = space.project(np.stack(rows), randoms, frames)
        return [None if row is None else space.strategy(row) for row in met]


def global_strategy(space: Space, unit_scores: Sequence[np.ndarray]) -> Strategy:
    """Remove the least important units of the whole network, whatever their group, until the budget is met.

    A group keeps what `max_ratio` says it must, and its scores are divided by their mean.
    """
    normal = [scores / max(float(scores.mean()), 1e-12) for scores in unit_scores]
    every = np.sort(np.concatenate(normal))

    def along(t: np.ndarray) -> np.ndarray:
        thresholds = every[np.minimum((t * len(every)).astype(int), len(every) - 1)]
        ratios = np.stack([[(scores < threshold).mean() for scores in normal] for threshold in thresholds])
        return np.minimum(ratios, space.max_ratio)

    low, high = np.zeros(1), np.ones(1)
    widths = space.widths(along(space.bisect(along, low, high)))[0]
    if not space.bounds.fits(widths)[0]:  # its steps are coarse: a whole group's limit, a wide group's unit
        repaired = space.repair(widths[None], [np.random.default_rng(0)])[0]
        widths = repaired if repaired is not None else widths
    return Strategy(tuple(widths))
