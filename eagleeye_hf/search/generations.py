"""The search itself: propose, score in stages, look at the results, propose again."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from tqdm.auto import tqdm

from eagleeye_hf.search.config import SearchConfig
from eagleeye_hf.search.methods import Proposer
from eagleeye_hf.search.result import Candidate, rank_candidates
from eagleeye_hf.search.workers import Workers
from eagleeye_hf.strategies.sampling import Space
from eagleeye_hf.strategies.strategy import Strategy


class Search:
    """Everything it decides follows from the config and from finished generations, never from who scored what when.

    Args:
        spaces: the strategies that meet each budget.
        unit_scores: as in `Proposer`.
    """

    def __init__(
        self,
        spaces: Sequence[Space],
        config: SearchConfig,
        workers: Workers,
        unit_scores: Sequence[np.ndarray] | None = None,
    ) -> None:
        self.spaces, self.config, self.workers = spaces, config, workers
        self.proposers = [Proposer(space, config, unit_scores) for space in spaces]
        self.candidates: list[Candidate] = []
        self._places: dict[int, int] = {}
        self._losses: list[dict[int, float]] = [{} for _ in config.stages]
        self._tried: list[set[int]] = [set() for _ in config.stages]
        self._elapsed = 0.0
        self._bar: tqdm | None = None
        self._best: list[Candidate] = []

    def run(self) -> None:
        generation = 0
        with self._progress() as self._bar:
            while fresh := self._propose(generation):
                self._places |= {c.index: place for place, c in enumerate(fresh, len(self.candidates))}
                self.candidates += fresh
                for stage in range(len(self.config.stages)):
                    self._score(fresh if stage == 0 else self._promoted(stage, len(fresh)), stage)
                generation += 1
                if self.config.minutes is not None and self._elapsed >= 60 * self.config.minutes:
                    break

    def leaders(self, budget: int) -> list[Candidate]:
        return rank_candidates([c for c in self.candidates if c.budget == budget])

    def take(self, row: dict) -> None:
        """Write a line of the journal into its candidate; candidates are in the order of their index."""
        place = self._places[row["index"]]
        self.candidates[place] = self.candidates[place].updated(row)

    def _propose(self, generation: int) -> list[Candidate]:
        count = max(1, self.config.generation // len(self.spaces))
        fresh = []
        for budget, proposer in enumerate(self.proposers):
            limit = proposer.num_candidates
            start = generation * count
            stop = start + count if limit is None else min(start + count, limit)
            if start >= stop:
                continue
            parents = [candidate.strategy for candidate in self.leaders(budget)]
            seen = {c.strategy.widths for c in self.candidates if c.budget == budget}
            strategies = proposer.propose(range(start, stop), parents if generation else [], seen)
            for number, strategy in zip(range(start, stop), strategies, strict=True):
                fresh.append(self._candidate(number * len(self.spaces) + budget, budget, strategy))
        return sorted(fresh, key=lambda candidate: candidate.index)

    def _candidate(self, index: int, budget: int, strategy: Strategy) -> Candidate:
        latency = self.spaces[budget].bounds.latency
        predicted = None
        if latency is not None:
            predicted = float(latency.predict(self.spaces[budget].graph, np.array([strategy.widths]))[0])
        return Candidate(index=index, budget=budget, strategy=strategy, latency_ms=predicted)

    def _promoted(self, stage: int, num_fresh: int) -> list[Candidate]:
        """Those among the best so far at the stage before that have not been at this one, as many as are a generation's
        part."""
        places = math.ceil(self.config.promote**stage * num_fresh / len(self.spaces))
        chosen = []
        for budget in range(len(self.spaces)):
            losses = self._losses[stage - 1]
            own = [c for c in self.candidates if c.budget == budget and c.index in losses]
            own.sort(key=lambda candidate: (losses[candidate.index], candidate.index))
            best = own[: math.ceil(self.config.promote * len(own))]
            chosen += [candidate for candidate in best if candidate.index not in self._tried[stage]][:places]
        return sorted(chosen, key=lambda candidate: candidate.index)

    def _score(self, candidates: Sequence[Candidate], stage: int) -> None:
        for row in self.workers.run(candidates, stage, self.config.stages[stage]):
            self.take(row)
            self._tried[stage].add(row["index"])
            if row["status"] == "ok":
                self._losses[stage][row["index"]] = row["loss"]
            self._elapsed = max(self._elapsed, row["elapsed"])
            self._show(stage, self.candidates[self._places[row["index"]]])

    def _progress(self) -> tqdm:
        limits = [proposer.num_candidates for proposer in self.proposers]
        total = None if None in limits else sum(limit for limit in limits if limit is not None)
        by_time = self.config.minutes is not None and total is None
        return tqdm(
            total=round(60 * self.config.minutes) if by_time and self.config.minutes else total,
            desc="search",
            unit="s" if by_time else "candidate",
            bar_format="{desc}: {percentage:3.0f}%|{bar}| {n_fmt} of {total_fmt} s{postfix}" if by_time else None,
            disable=not self.workers.accelerator.is_main_process,
            delay=2,
        )

    def _show(self, stage: int, changed: Candidate) -> None:
        bar = self._bar
        if bar is None or bar.disable:
            return
        if bar.unit == "s":
            bar.update(min(int(self._elapsed), bar.total) - bar.n)
        elif stage == 0:
            bar.update()
        best = rank_candidates([*self._best, changed])[:1] if changed.budget == 0 else self._best
        if best != self._best:
            self._best = best
            bar.set_postfix_str(f"best loss {best[0].loss:.3f}, top-1 {best[0].top1:.2%}", refresh=False)
