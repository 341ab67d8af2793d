"""What a strategy has beside its widths: the blocks that are gone, and the size of the image."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from functools import cached_property
from typing import Literal

import numpy as np

from eagleeye_hf.channels.cost import strategy_rows
from eagleeye_hf.strategies.budget import Bounds
from eagleeye_hf.strategies.strategy import Strategy

Dimension = Literal["width", "depth", "size"]
FLIPPED = 1.5
"""Blocks of a child, on average, that come or go."""
RESIZED = 0.25
"""Part of the children whose image grows or shrinks by one step."""
PARTIAL = 0.5
"""Part of the draws that leaves some dimensions as they are."""

Random = np.random.Generator


class Frames:
    """The frames of one network under one budget: rows of whether each block is gone, and the image size.

    Args:
        spared: names of blocks that must stay.
    """

    def __init__(self, bounds: Bounds, dimensions: Sequence[Dimension], spared: Sequence[str] = ()) -> None:
        self.bounds, self.graph, self.dimensions = bounds, bounds.graph, tuple(dimensions)
        blocks = self.graph.blocks if "depth" in dimensions else ()
        self.removable = np.array([n for n, b in enumerate(blocks) if b.removable and b.name not in spared], dtype=int)
        self.sizes = np.array(self.graph.image_sizes if "size" in dimensions else (self.graph.image_size,))
        self.full = strategy_rows(self.graph, [Strategy(self.graph.widths)])[0, len(self.graph.groups) :]
        frames = np.stack([self.sized(size) for size in self.sizes])
        if "width" in dimensions:
            fits = self.load(frames) >= 1
        else:
            frames[:, self.removable] = 1
            fits = self.load(frames) <= 1 + bounds.slack
        self.roomy = self.sizes[fits] if fits.any() else self.sizes[-1:]
        """Sizes from which the other dimensions can reach the budget: thinner layers have to be needed, fewer blocks to
        be enough."""

    @property
    def num_changing(self) -> int:
        """The dimensions in which networks differ."""
        return ("width" in self.dimensions) + (len(self.removable) > 0) + (len(self.sizes) > 1)

    def sized(self, size: int) -> np.ndarray:
        """The frame of the full network at another image size."""
        return np.append(self.full[:-1], size)

    @property
    def least(self) -> np.ndarray:
        """The frame that costs the least."""
        frame = self.sized(int(self.sizes.min()))
        frame[self.removable] = 1
        return frame

    def load(self, frames: np.ndarray) -> np.ndarray:
        """What networks of full widths take of the tightest bound; 1: all of it. Shape `(num_frames,)`."""
        widths = np.tile(np.array(self.graph.widths), (len(frames), 1))
        return self.bounds.load(np.hstack([widths, frames]))

    def kinds(self, strategies: Sequence[Strategy]) -> list[str]:
        """Which dimension takes most of each strategy's load off, in logarithms."""
        rows = strategy_rows(self.graph, strategies)
        frames = rows[:, len(self.graph.groups) :]
        sized = np.stack([self.sized(int(size)) for size in frames[:, -1]])
        loads = [self.load(self.full[None]), self.load(sized), self.load(frames), self.bounds.load(rows)]
        steps = -np.diff(
            np.log(np.maximum(np.stack([np.broadcast_to(load, len(rows)) for load in loads]), 1e-9)), axis=0
        )
        return [("size", "depth", "width")[kind] for kind in steps.argmax(0)]

    def draw(self, randoms: Sequence[Random]) -> np.ndarray:
        """Random frames; how much each dimension takes of what has to go is uniform on the simplex of such parts.

        What has to go is the logarithm of the full network's load, so that parts of several dimensions add up. Half of
        the draws are of a random face of the simplex, all dimensions or some: what one or two of them can do alone is a
        small part of what all can, and often the best of it.
        """
        parts = np.stack([self._draw_parts(random) for random in randoms])
        share = {name: parts[:, place] for place, name in enumerate(self.dimensions)}
        none = np.zeros(len(randoms))
        total = np.log(max(float(self.load(self.full[None])[0]), 1.0))
        roomy = np.log(np.maximum(self.load(np.stack([self.sized(size) for size in self.roomy])), 1e-9))
        wanted = total * (1 - share.get("size", none))
        sizes = self.roomy[np.abs(roomy - wanted[:, None]).argmin(1)]
        orders = [random.permutation(self.removable) for random in randoms]
        rest = share.get("width", none) / np.maximum(share.get("width", none) + share.get("depth", none), 1e-9)
        return self._remove(orders, sizes, np.where(rest > 0, rest, np.nan))

    def _draw_parts(self, random: Random) -> np.ndarray:
        """Those of each dimension; zero where one stays as it is."""
        taking_part = np.ones(len(self.dimensions), dtype=bool)
        if random.random() < PARTIAL:
            taking_part = self._faces[random.integers(len(self._faces))]
        parts = np.zeros(len(self.dimensions))
        parts[taking_part] = random.dirichlet(np.ones(taking_part.sum()))
        return parts

    @cached_property
    def _faces(self) -> list[np.ndarray]:
        """Which dimensions take part, in each way but by image size beside others that don't: there is one such
        network, and it is tried in any case."""
        every = map(np.array, itertools.product([False, True], repeat=len(self.dimensions)))
        size = np.array([name == "size" for name in self.dimensions])
        return [face for face in every if face.any() and (len(face) == 1 or not np.array_equal(face, size))]

    def breed(
        self, first: np.ndarray, second: np.ndarray, randoms: Sequence[Random], whole: Sequence[bool]
    ) -> np.ndarray:
        """Children of pairs of frames: each block and the size from either, then changed a little and brought to where
        widths can meet the budget.

        Args:
            whole: whether a child is to meet it without widths, as both of its parents do.
        """
        sizes, orders = [], []
        for random, alone, *pair in zip(randoms, whole, first, second, strict=True):
            frame = np.where(random.random(len(self.full)) < 0.5, *pair)
            flips = self.removable[random.random(len(self.removable)) < FLIPPED / max(len(self.removable), 1)]
            frame[flips] = 1 - frame[flips]
            place = int(np.abs(self.roomy - frame[-1]).argmin())
            if random.random() < RESIZED:
                place = int(np.clip(place + random.choice([-1, 1]), 0, len(self.roomy) - 1))
            sizes.append(self.roomy[place])
            shuffled = random.permutation(self.removable)
            gone = frame[shuffled] == 1
            orders.append(np.append(shuffled[gone], shuffled[~gone]) if alone else shuffled[gone])
        return self._remove(orders, np.array(sizes), np.where(whole, np.nan, 0.0))

    def singles(self) -> dict[str, np.ndarray]:
        """The frames that meet the budget by one dimension alone: blocks removed evenly, or a smaller image."""
        found = {}
        if len(self.removable):
            frame = self._remove([self._evenly()], np.array([self.graph.image_size]), np.array([np.nan]))[0]
            found["depth"] = frame
        if len(self.sizes) > 1:
            fits = [size for size in self.sizes if self.bounds.meets(self._row(self.sized(size)))[0]]
            if fits:
                found["size"] = self.sized(max(fits))
        return {name: frame for name, frame in found.items() if self.bounds.meets(self._row(frame))[0]}

    def _row(self, frame: np.ndarray) -> np.ndarray:
        return np.append(self.graph.widths, frame)[None]

    def _evenly(self) -> np.ndarray:
        """The blocks in an order that takes as many from each stage, in proportion, its last ones first."""
        stages: dict[str, list[int]] = {}
        for number in self.removable:
            stages.setdefault(re.sub(r"[^.]+$", "", self.graph.blocks[number].name), []).append(int(number))
        ranks = {
            number: (place + 0.5) / len(numbers)
            for numbers in stages.values()
            for place, number in enumerate(reversed(numbers))
        }
        return np.array(sorted(ranks, key=lambda number: (ranks[number], -number)), dtype=int)

    def _remove(self, orders: Sequence[np.ndarray], sizes: np.ndarray, rest: np.ndarray) -> np.ndarray:
        """Frames of these sizes without the first blocks of each order.

        Args:
            rest: the part of what has to go that is left to widths, per frame: as many blocks go as come nearest to
                that without falling below the budget. Not a number: as few as meet it, or all.
        """
        longest = max((len(order) for order in orders), default=0)
        steps = np.tile(self.full, (len(orders), longest + 1, 1))
        steps[..., -1] = sizes[:, None]
        for frames, order in zip(steps, orders, strict=True):
            for place, block in enumerate(order, 1):
                frames[place:, block] = 1
        loads = self.load(steps.reshape(-1, len(self.full))).reshape(steps.shape[:2])
        meets = loads <= 1 + self.bounds.slack
        alone = np.where(meets.any(1), meets.argmax(1), longest)
        logs = np.log(np.maximum(loads, 1e-9))
        misses = np.abs(logs - np.nan_to_num(rest)[:, None] * logs[:, :1])
        chosen = np.where(np.isnan(rest), alone, np.where(loads >= 1, misses, np.inf).argmin(1))
        return steps[np.arange(len(orders)), chosen]
