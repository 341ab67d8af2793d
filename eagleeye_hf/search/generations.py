"""The search itself: propose, score in stages, look at the results, propose again; all of it at the same time."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Sequence

import numpy as np

from eagleeye_hf.channels.cost import Cost, count_cost, strategy_rows
from eagleeye_hf.evaluation.objective import Score, Seen
from eagleeye_hf.search.candidate import Candidate, Line, Scored, Task, rank_candidates
from eagleeye_hf.search.config import SearchConfig
from eagleeye_hf.search.methods import Proposal, Proposer
from eagleeye_hf.search.progress import SearchBar
from eagleeye_hf.search.stages import Stage, count_finalists, count_promoted, count_waves, interleave, work_of
from eagleeye_hf.search.workers import Workers
from eagleeye_hf.strategies.space import Space
from eagleeye_hf.strategies.strategy import Strategy

CATCHING_UP = 4
"""How often those that would come to the last stage are first brought to the stage before it, for what was seen on few
images is often luck."""
DELAY = 2
"""Generations after which a stage's scores are looked at, times the number of stages so far."""


class Search:
    """Everything it decides follows from the config and from scores, never from who scored what when.

    Candidates are in generations, and those of a generation that come to a further stage are its *wave* there. So that
    nobody waits for the slowest, generation g is made of what is known of the stages s of generations up to
    g - 2 (s + 1) alone: what lies between is scored at the same time. The last stages come once, at the end.

    Args:
        spaces: the strategies that meet each budget.
        stages: as `list_stages` gives them.
        unit_scores: as in `Proposer`.
        reports: what is reported beside the loss, for the progress bar.
    """

    def __init__(
        self,
        spaces: Sequence[Space],
        config: SearchConfig,
        seed: int,
        workers: Workers,
        stages: Sequence[Stage],
        unit_scores: Sequence[np.ndarray] | None = None,
        reports: str = "score",
    ) -> None:
        self.spaces, self.config, self.workers, self.stages = spaces, config, workers, stages
        self.num_waves = count_waves(stages)
        self.proposers = [Proposer(space, config, seed, unit_scores) for space in spaces if workers.is_main]
        self.candidates: list[Candidate] = []
        self._places: dict[int, int] = {}
        self._waves: list[dict[int, int]] = [{} for _ in stages]
        """Per stage: the wave in which each candidate comes to it."""
        self._lines: list[dict[int, Scored]] = [{} for _ in stages]
        """Per stage: what is known of each candidate."""
        self._open: list[dict[int, int]] = [{} for _ in stages]
        """Per stage: how many of each wave are not finished."""
        self._ended = self._closing = False
        limits = [proposer.num_candidates for proposer in self.proposers]
        total = None if None in limits else sum(limit for limit in limits if limit is not None)
        self._open_bar = functools.partial(SearchBar, total, config.minutes, reports, workers.is_main)
        self._bar: SearchBar | None = None

    def run(self, before_last: Callable[[], object] | None = None) -> None:
        """In every process; each knows all candidates at the end.

        Args:
            before_last: called in every process once all stages but the last one are done; what it finds to be beyond a
                bound does not come to that one.
        """
        with contextlib.closing(self._open_bar()) as self._bar:
            self._closing = before_last is None
            self._score()
            if before_last is not None:
                before_last()
                self._closing = True
                self._score()

    def _score(self) -> None:
        self.candidates = self.workers.run(self.follow, lambda: self.candidates)
        self._places = {candidate.index: place for place, candidate in enumerate(self.candidates)}

    def leaders(self, budget: int) -> list[Candidate]:
        return rank_candidates([c for c in self.candidates if c.budget == budget])

    def finalists(self, budget: int) -> list[Candidate]:
        """Those that come to the last stage, by what is known of each: as many as without a bound on milliseconds.
        Those that were measured beyond it are replaced by the next best; where all are beyond it, the nearest stay."""
        return self._best_of(budget, 1)

    def _best_of(self, budget: int, width: int) -> list[Candidate]:
        """The same for a stage to which several times as many come; those that were trained for a few steps first."""
        own = sorted(self.leaders(budget), key=lambda c: (c.score.loss if c.score else math.inf, c.index))
        num = self._num_finalists(own) * width
        if self._closing and any(c.latency for c in own):  # those that were asked for, and could be measured
            own = [c for c in own if c.latency]
        fitting = [c for c in own if not c.beyond] or sorted(own, key=lambda c: c.beyond)[:num]
        trained, others = (
            [c for c in fitting if bool(c.score and c.score.matched) == is_it] for is_it in (True, False)
        )
        return [*self._in_turns(trained), *self._in_turns(others)][:num]

    def _num_finalists(self, own: Sequence[Candidate]) -> int:
        return min(len(own), count_finalists(len(own), self.config.promote, self.stages))

    def take(self, line: Line) -> None:
        """Write a line of the journal into its candidate; candidates are in the order of their index."""
        place = self._places[line.index]
        self.candidates[place] = line.apply(self.candidates[place])

    def follow(self, lines: Sequence[Scored]) -> list[Task]:
        """What there is to score once these lines are known."""
        for line in sorted(lines, key=lambda line: line.stage):
            self.take(line)
            self._lines[line.stage][line.index] = line
            self._open[line.stage][self._waves[line.stage][line.index]] -= 1
            if self._bar is not None:
                self._bar.show(line.stage, self.candidates[self._places[line.index]], self.workers.elapsed)
        return [*self._promote(), *self._start(), *self._finish()]

    def _start(self) -> list[Task]:
        """The first stage of the generations that can be made by now."""
        tasks: list[Task] = []
        while not self._ended and self._is_known(generation := len(self._open[0])):
            fresh = [] if self._is_over(generation) else self._propose(generation)
            self._ended = not fresh
            if fresh:
                self._places |= {c.index: place for place, c in enumerate(fresh, len(self.candidates))}
                self.candidates += fresh
                tasks += self._enter(fresh, 0, generation)
        return tasks

    def _promote(self) -> list[Task]:
        """Those that come to a stage between the first and the last, wave by wave."""
        tasks: list[Task] = []
        for stage in range(1, self.num_waves):
            while (wave := len(self._open[stage])) < len(self._open[stage - 1]) and self._is_done(stage - 1, wave):
                tasks += self._enter(self._chosen(stage, wave), stage, wave)
        return tasks

    def _finish(self) -> list[Task]:
        """Those that come to a stage to which all come at once, when all before it is finished."""
        stage, waves = sum(map(bool, self._open)), len(self._open[0])
        if not self._ended or not self.num_waves <= stage < len(self.stages):
            return []
        if any(any(opened.values()) for opened in self._open) or len(self._open[self.num_waves - 1]) < waves:
            return []
        width = self.stages[stage].width
        chosen = [candidate for budget in range(len(self.spaces)) for candidate in self._best_of(budget, width)]
        if stage == self.num_waves:
            behind, wave = [c for c in chosen if c.index not in self._waves[stage - 1]], len(self._open[stage - 1])
            if behind and wave < waves + CATCHING_UP:
                return self._enter(behind, stage - 1, wave)
            if len(chosen) <= sum(self._num_finalists(self.leaders(budget)) for budget in range(len(self.spaces))):
                choice = len(chosen) > len(self.spaces)
                self.stages = (*self.stages[:stage], self.stages[-1] if choice else Stage(1.0, width=1))
        if stage == len(self.stages) - 1 and not self._closing:
            return []
        return self._enter(chosen, stage, 0)

    def _enter(self, candidates: Sequence[Candidate], stage: int, wave: int) -> list[Task]:
        self._waves[stage] |= dict.fromkeys((candidate.index for candidate in candidates), wave)
        self._open[stage][wave] = len(candidates)
        tasks = []
        for candidate in sorted(candidates, key=lambda candidate: candidate.index):
            known = [
                (number, lines[candidate.index])
                for number, lines in enumerate(self._lines[:stage])
                if candidate.index in lines
            ]
            seen, line = known[-1] if known else (0, None)
            fraction, steps = self.stages[stage].fraction, self.stages[stage].steps
            before = Seen(self.stages[seen].fraction, line.score) if line and line.score and not steps else None
            proposed = line.candidate if line else candidate
            tasks.append(Task(candidate=proposed, stage=stage, fraction=fraction, before=before, matched=steps))
        return tasks

    def _is_known(self, generation: int) -> bool:
        """Whether all that a generation is made of is finished."""
        return all(self._is_done(stage, generation - DELAY * (stage + 1)) for stage in range(self.num_waves))

    def _is_done(self, stage: int, wave: int) -> bool:
        """Whether a stage is finished up to a wave."""
        return all(self._open[stage].get(number) == 0 for number in range(wave + 1))

    def _known(self, generation: int) -> list[Scored]:
        """What a generation is made of."""
        return [
            line
            for stage, lines in enumerate(self._lines)
            for line in lines.values()
            if self._waves[stage][line.index] <= generation - DELAY * (stage + 1)
        ]

    def _parents(self, budget: int, generation: int) -> list[Strategy]:
        """The best of what a generation is made of, by the loss at the last stage that it knows of each: those of a
        further stage are no better for that, and older."""
        known = {line.index: line for line in self._known(generation)}
        own = [line for line in known.values() if line.candidate.budget == budget]
        ranked = sorted((line.score.loss, line.index) for line in own if line.score)
        return [candidate.strategy for candidate in self._in_turns([known[index].candidate for _, index in ranked])]

    def _in_turns(self, ranked: Sequence[Candidate]) -> list[Candidate]:
        """Of each kind in turn: before training, networks that are thinner, shallower or of smaller images can only be
        compared among themselves."""
        if not ranked:
            return []
        return interleave(ranked, self.spaces[ranked[0].budget].kinds([candidate.strategy for candidate in ranked]))

    def _is_over(self, generation: int) -> bool:
        """Whether the minutes are over that what a generation is made of took, and that the last stages will take."""
        if self.config.minutes is None:
            return False
        known = self._known(generation)
        fractions = [stage.fraction for stage in self.stages]
        parts = [after - before for before, after in zip((0.0, *fractions), fractions, strict=False)]
        done = sum(parts[line.stage] for line in known)
        num = len({line.index for line in known})
        left = sum(work_of(self.stages, num, self.config.promote)[self.num_waves :])
        elapsed = max((line.elapsed for line in known), default=0.0)
        begun = min((line.elapsed - line.seconds for line in known), default=0.0)  # what came before is no scoring
        return elapsed + (elapsed - begun) * left / max(done, 1e-9) >= 60 * self.config.minutes

    def _propose(self, generation: int) -> list[Candidate]:
        count = self.config.generation_size
        fresh = []
        for budget, proposer in enumerate(self.proposers):
            limit = proposer.num_candidates
            start = generation * count
            stop = start + count if limit is None else min(start + count, limit)
            if start >= stop:
                continue
            parents = self._parents(budget, generation)
            seen = {c.strategy for c in self.candidates if c.budget == budget}
            proposals = proposer.propose(range(start, stop), parents, seen)
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

    def _chosen(self, stage: int, wave: int) -> list[Candidate]:
        """Those among the best of the stage before that have not been at this one, so that the best tenth have been."""
        chosen = []
        for budget in range(len(self.spaces)):
            ranked = self._in_turns(self._ranked(budget, stage - 1, wave))
            num = sum(self._waves[0][c.index] <= wave for c in self.candidates if c.budget == budget)
            places = count_promoted(num, self.config.promote, stage)
            places -= sum(self.candidates[self._places[index]].budget == budget for index in self._waves[stage])
            best = ranked[: count_promoted(len(ranked), self.config.promote, 1)]
            chosen += [candidate for candidate in best if candidate.index not in self._waves[stage]][:places]
        return chosen

    def _ranked(self, budget: int, stage: int, wave: int) -> list[Candidate]:
        """A budget's candidates by their loss at a stage, up to a wave."""

        def loss(candidate: Candidate) -> tuple[float, int]:
            score = self._score_at(candidate, stage, wave)
            return (score.loss if score else math.inf), candidate.index

        scored = [c for c in self.candidates if c.budget == budget and self._score_at(c, stage, wave)]
        return sorted(scored, key=loss)

    def _score_at(self, candidate: Candidate, stage: int, wave: int) -> Score | None:
        line = self._lines[stage].get(candidate.index)
        return line.score if line is not None and self._waves[stage][candidate.index] <= wave else None
