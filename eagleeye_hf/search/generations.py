"""The search itself: propose, score in stages, look at the results, propose again."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from tqdm import tqdm

from eagleeye_hf.channels.cost import Cost, count_cost, strategy_rows
from eagleeye_hf.search.candidate import Candidate, Line, rank_candidates
from eagleeye_hf.search.config import SearchConfig
from eagleeye_hf.search.methods import Proposal, Proposer
from eagleeye_hf.search.workers import Workers
from eagleeye_hf.strategies.space import Space
from eagleeye_hf.telling import progress_bar


class Search:
    """Everything it decides follows from the config and from finished generations, never from who scored what when.

    Args:
        spaces: the strategies that meet each budget.
        unit_scores: as in `Proposer`.
        reports: what is reported beside the loss, for the progress bar.
    """

    def __init__(
        self,
        spaces: Sequence[Space],
        config: SearchConfig,
        seed: int,
        workers: Workers,
        unit_scores: Sequence[np.ndarray] | None = None,
        reports: str = "score",
    ) -> None:
        self.spaces, self.config, self.workers, self.reports = spaces, config, workers, reports
        self.proposers = [Proposer(space, config, seed, unit_scores) for space in spaces]
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

    def take(self, line: Line) -> None:
        """Write a line of the journal into its candidate; candidates are in the order of their index."""
        place = self._places[line.index]
        self.candidates[place] = line.apply(self.candidates[place])

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
            seen = {c.strategy for c in self.candidates if c.budget == budget}
            proposals = proposer.propose(range(start, stop), parents if generation else [], seen)
            for number, proposal in zip(range(start, stop), proposals, strict=True):
                fresh.append(self._candidate(number * len(self.spaces) + budget, budget, proposal))
        return sorted(fresh, key=lambda candidate: candidate.index)

    def _candidate(self, index: int, budget: int, proposal: Proposal) -> Candidate:
        space, predicted = self.spaces[budget], None
        cost = count_cost(space.graph, proposal.strategy)
        if space.bounds.latency is not None:
            predicted = float(
                space.bounds.latency.predict(space.graph, strategy_rows(space.graph, [proposal.strategy]))[0]
            )
        return Candidate(
            index=index,
            budget=budget,
            strategy=proposal.strategy,
            origin=proposal.origin,
            cost=Cost(int(cost.macs), int(cost.params)),
            predicted_ms=predicted,
        )

    def _promoted(self, stage: int, num_fresh: int) -> list[Candidate]:
        """Those among the best so far at the stage before that have not been at this one, as many as are a generation's
        part."""
        places = math.ceil(self.config.promote**stage * num_fresh / len(self.spaces))
        chosen = []
        for budget in range(len(self.spaces)):
            losses = self._losses[stage - 1]
            ranked = [c for c in self.candidates if c.budget == budget and c.index in losses]
            ranked.sort(key=lambda candidate: (losses[candidate.index], candidate.index))
            best = ranked[: math.ceil(self.config.promote * len(ranked))]
            chosen += [candidate for candidate in best if candidate.index not in self._tried[stage]][:places]
        return sorted(chosen, key=lambda candidate: candidate.index)

    def _score(self, candidates: Sequence[Candidate], stage: int) -> None:
        for line in self.workers.run(candidates, stage, self.config.stages[stage]):
            self.take(line)
            self._tried[stage].add(line.index)
            if line.score is not None:
                self._losses[stage][line.index] = line.score.loss
            self._elapsed = max(self._elapsed, line.elapsed)
            self._show(stage, self.candidates[self._places[line.index]])

    def _progress(self) -> tqdm:
        limits = [proposer.num_candidates for proposer in self.proposers]
        total = None if None in limits else sum(limit for limit in limits if limit is not None)
        by_time = self.config.minutes is not None and total is None
        return progress_bar(
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
            score = best[0].score
            bar.set_postfix_str(
                f"best loss {score.loss:.3f}, {self.reports} {score.reported:.2%}" if score else "", refresh=False
            )
