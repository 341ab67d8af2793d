"""Candidates, what was found out about them, and which of them lead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from eagleeye_hf.channels.cost import Cost
from eagleeye_hf.evaluation.objective import Score, Seen
from eagleeye_hf.runtimes.latency import Latency
from eagleeye_hf.strategies.strategy import Strategy


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A strategy with its cost and, once scored, its score."""

    index: int
    strategy: Strategy
    origin: str
    """How it was found: uniform, random, evolution, global."""
    cost: Cost
    budget: int = 0
    """Which of the search's budgets it meets."""
    predicted_ms: float | None = None
    """Where the budget bounds milliseconds."""
    score: Score | None = None
    """On the holdout images of its last stage, after adaptive BatchNorm."""
    latency: Latency | None = None
    """Measured."""
    beyond: float = 0.0
    """By how much the measured milliseconds exceed the budget's bound, as a fraction of it; 0 where they keep to it."""
    seconds: float = 0.0
    """Spent on it in all stages."""
    status: str = "not scored"
    """`ok`, or what went wrong."""

    @property
    def scored(self) -> bool:
        return self.status == "ok" and self.score is not None

    @property
    def milliseconds(self) -> float | None:
        """Measured or, where that is not known, predicted."""
        return self.latency.milliseconds if self.latency else self.predicted_ms

    def to_dict(self) -> dict[str, Any]:
        """What was proposed; scores have lines of their own."""
        return {
            "index": self.index,
            "budget": self.budget,
            "origin": self.origin,
            "strategy": self.strategy.to_dict(),
            "macs": self.cost.macs,
            "params": self.cost.params,
            "predicted_ms": self.predicted_ms,
        }

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Candidate:
        return Candidate(
            index=data["index"],
            budget=data["budget"],
            origin=data["origin"],
            strategy=Strategy.from_dict(data["strategy"]),
            cost=Cost(data["macs"], data["params"]),
            predicted_ms=data["predicted_ms"],
        )


@dataclass(frozen=True, kw_only=True)
class Task:
    """A candidate to score at a stage."""

    candidate: Candidate
    stage: int
    fraction: float
    """Of the images."""
    before: Seen | None = None
    """Its score at the stage before."""
    matched: int = 0
    """Steps without labels that it is trained first."""


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A line of the journal: a candidate was scored at a stage."""

    candidate: Candidate
    stage: int
    score: Score | None
    status: str
    seconds: float
    elapsed: float
    """Seconds of the whole search so far."""

    @property
    def index(self) -> int:
        return self.candidate.index

    def is_of(self, task: Task) -> bool:
        """Whether it was trained as the task wants."""
        return self.score is None or self.score.matched == task.matched

    def apply(self, candidate: Candidate) -> Candidate:
        return replace(candidate, score=self.score, status=self.status, seconds=candidate.seconds + self.seconds)

    def to_dict(self) -> dict[str, Any]:
        return {
            "kind": "score",
            **self.candidate.to_dict(),
            "stage": self.stage,
            "score": self.score and self.score.to_dict(),
            "status": self.status,
            "seconds": self.seconds,
            "elapsed": self.elapsed,
        }


@dataclass(frozen=True, kw_only=True)
class Timed:
    """A line of the journal: a candidate's milliseconds were measured."""

    index: int
    latency: Latency
    beyond: float
    """As in `Candidate`."""
    elapsed: float

    def apply(self, candidate: Candidate) -> Candidate:
        return replace(candidate, latency=self.latency, beyond=self.beyond)

    def to_dict(self) -> dict[str, Any]:
        latency = self.latency.to_dict()
        return {"kind": "latency", "index": self.index, "latency": latency, "beyond": self.beyond} | {
            "elapsed": self.elapsed
        }


Line = Scored | Timed


def rank_candidates(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those that have a score; those of more steps without labels first, more images first, then the lower holdout
    loss. Those that were measured beyond their budget's milliseconds come last, the nearest to it first."""
    ranked = [
        (c.beyond, -c.score.matched, -c.score.num_images, c.score.loss, c.index, c)
        for c in candidates
        if c.scored and c.score
    ]
    return [entry[-1] for entry in sorted(ranked, key=lambda entry: entry[:5])]
