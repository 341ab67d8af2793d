"""Score many strategies, on one or many processes, in a run that can be killed and started again."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from tqdm.auto import tqdm

from eagleeye_hf.channels.budget import Budget
from eagleeye_hf.channels.graph import ChannelGraph
from eagleeye_hf.channels.sampling import sample_strategies
from eagleeye_hf.channels.strategy import Strategy
from eagleeye_hf.errors import EagleEyeError
from eagleeye_hf.search.journal import Journal


class Score(Protocol):
    """What a search needs of a metric; `loss` ranks."""

    @property
    def loss(self) -> float: ...
    @property
    def top1(self) -> float: ...
    @property
    def num_images(self) -> int: ...


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """Which strategies to try."""

    macs: float | None = 0.5
    """Budget of MACs: a fraction of the full model, or an absolute number."""
    params: float | None = None
    """Budget of parameters, likewise."""
    tolerance: float = 0.005
    """How far the budget may be missed, as a fraction of the full model."""
    divisor: int = 1
    """Widths are multiples of it."""
    max_ratio: float = 0.7
    """The largest fraction of channels removed from a group."""
    candidates: int = 100
    """Strategies to score, the uniform one included."""
    seed: int = 0

    @property
    def budget(self) -> Budget:
        return Budget(macs=self.macs, params=self.params, tolerance=self.tolerance)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A strategy and its score on the holdout images after adaptive BatchNorm."""

    index: int
    strategy: Strategy
    loss: float
    top1: float
    num_images: int
    seconds: float
    status: str
    """`ok`, or what went wrong."""


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    candidates: tuple[Candidate, ...]
    """In the order they were drawn."""

    @property
    def leaders(self) -> list[Candidate]:
        """The candidates that have a score, lowest holdout loss first."""
        return sorted((c for c in self.candidates if c.status == "ok"), key=lambda c: (c.loss, c.index))

    @property
    def best(self) -> Candidate:
        if not self.leaders:
            raise EagleEyeError(f"no candidate could be scored; the first one failed with: {self.candidates[0].status}")
        return self.leaders[0]


def run_search(
    score: Callable[[Sequence[int]], Score],
    graph: ChannelGraph,
    config: SearchConfig,
    *,
    output: Path | None = None,
    fingerprint: Mapping[str, Any] | None = None,
    accelerator: Accelerator | None = None,
) -> SearchResult:
    """Draw strategies that meet the budget and score them; the same on any number of processes.

    Args:
        score: widths, one per group of the graph, to a score with `loss`, `top1` and `num_images`.
        output: folder of the journal `search.jsonl`; a run started again there goes on where it was killed.
        fingerprint: what else determines a score (weights, images...), kept in the journal and compared on resume.
    Raises:
        EagleEyeError: the budget is out of reach, or the journal in `output` is of another configuration.
    """
    strategies = sample_strategies(
        graph, config.budget, config.candidates, config.seed, divisor=config.divisor, max_ratio=config.max_ratio
    )
    accelerator = accelerator or Accelerator()
    journal = None
    if output is not None:
        settings = asdict(config) | {"groups": [group.name for group in graph.groups]} | dict(fingerprint or {})
        journal = Journal(output / "search.jsonl", settings, write=accelerator.is_main_process)
        accelerator.wait_for_everyone()
    rows = {row["index"]: row for row in (journal.rows if journal else [])}
    pending = [i for i in range(len(strategies)) if i not in rows]
    size = accelerator.num_processes
    bar = tqdm(
        total=len(strategies),
        initial=len(rows),
        desc="search",
        unit="candidate",
        disable=not accelerator.is_main_process,
        delay=2,
    )
    for start in range(0, len(pending), size):
        share = pending[start : start + size]
        own = share[accelerator.process_index : accelerator.process_index + 1]
        finished = [_score_one(score, index, strategies[index]) for index in own]
        if size > 1:
            finished = gather_object(finished)
        for row in finished:
            rows[row["index"]] = row
            if journal and accelerator.is_main_process:
                journal.append(row)
        bar.update(len(finished))
        best = min((row for row in rows.values() if row["status"] == "ok"), key=lambda row: row["loss"], default=None)
        if best:
            bar.set_postfix_str(f"best loss {best['loss']:.3f}, top-1 {best['top1']:.2%}")
    bar.close()
    candidates = [
        Candidate(
            index=i,
            strategy=strategy,
            **{key: rows[i][key] for key in ("loss", "top1", "num_images", "seconds", "status")},
        )
        for i, strategy in enumerate(strategies)
    ]
    return SearchResult(candidates=tuple(candidates))


def _score_one(score: Callable[[Sequence[int]], Score], index: int, strategy: Strategy) -> dict[str, Any]:
    started = time.perf_counter()
    row: dict[str, Any] = {
        "index": index,
        "origin": strategy.origin,
        "widths": list(strategy.widths),
        "macs": strategy.macs,
        "params": strategy.params,
        "loss": None,
        "top1": None,
        "num_images": 0,
    }
    try:
        metrics = score(strategy.widths)
        finite = math.isfinite(metrics.loss)
        row |= {"loss": metrics.loss if finite else None, "top1": metrics.top1, "num_images": metrics.num_images}
        status = "ok" if finite else "the loss is not a finite number"
    except (RuntimeError, ArithmeticError, torch.OutOfMemoryError) as error:  # one bad candidate ends no search
        status = f"{type(error).__name__}: {error}"
    return row | {"seconds": round(time.perf_counter() - started, 4), "status": status}
