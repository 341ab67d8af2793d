"""Scoring candidates, shared out over processes and threads, each one recorded as soon as it is finished."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any, Protocol

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from eagleeye_hf.search.journal import Journal
from eagleeye_hf.search.result import Candidate


class Score(Protocol):
    """What a search needs of a metric; `loss` ranks."""

    @property
    def loss(self) -> float: ...
    @property
    def top1(self) -> float: ...
    @property
    def num_images(self) -> int: ...


class Scorer(Protocol):
    """Widths, one per group of the graph, to a score; `share` of the images may do.

    A scorer may also have `workers` (candidates at a time), `prepare` and `adopt` (measure facts once, take them in
    every process), `unit_scores` (for the method `global`) and `measure` (milliseconds); see `AdaptiveBNScore`.
    """

    def __call__(self, widths: Sequence[int], share: float = 1.0) -> Score: ...


class Workers:
    """Runs a scorer on many candidates; every process gets every result.

    Args:
        journal: keeps what is finished, in the main process; None keeps nothing.
        rows: what earlier lives of this search finished.
        started: when this life of the search began, by `time.perf_counter`.
    """

    def __init__(
        self,
        score: Scorer,
        accelerator: Accelerator,
        journal: Journal | None,
        rows: Sequence[dict[str, Any]],
        started: float,
    ) -> None:
        self.score, self.accelerator, self.journal = score, accelerator, journal
        self.threads = max(1, getattr(score, "workers", 1))
        self.rows = {(row["index"], row["stage"]): row for row in rows}
        before = max((row["elapsed"] for row in self.rows.values()), default=0.0)
        self._started = started - before

    @property
    def elapsed(self) -> float:
        """Seconds of all lives of this search."""
        return time.perf_counter() - self._started

    def run(self, candidates: Sequence[Candidate], stage: int, share: float) -> Iterator[dict[str, Any]]:
        """The journal's line of each candidate at this stage: those on record first, others as they finish."""
        pending = []
        for candidate in candidates:
            row = self.rows.get((candidate.index, stage))
            if row is None:
                pending.append(candidate)
            else:
                yield row
        size, rank = self.accelerator.num_processes, self.accelerator.process_index
        if size == 1:
            for row in self._run_here(pending, stage, share):
                yield self.record(row)
            return
        step = size * self.threads
        for start in range(0, len(pending), step):
            own = list(self._run_here(pending[start : start + step][rank::size], stage, share))
            for row in gather_object(own):
                yield self.record(row)

    def record(self, row: dict[str, Any]) -> dict[str, Any]:
        self.rows[row["index"], row["stage"]] = row
        if self.journal:
            self.journal.append(row)
        return row

    def share(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The main process's lines, recorded, in every process."""
        if self.accelerator.num_processes > 1:
            rows = broadcast_object_list([rows])[0]
        return [self.record(row) for row in rows]

    def _run_here(self, candidates: Sequence[Candidate], stage: int, share: float) -> Iterable[dict[str, Any]]:
        if self.threads == 1:
            for candidate in candidates:
                yield self._score_one(candidate, stage, share)
            return
        with ThreadPoolExecutor(self.threads) as pool:
            futures = [pool.submit(self._score_one, candidate, stage, share) for candidate in candidates]
            try:
                for future in as_completed(futures):
                    yield future.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _score_one(self, candidate: Candidate, stage: int, share: float) -> dict[str, Any]:
        started = time.perf_counter()
        strategy = candidate.strategy
        row: dict[str, Any] = {
            "index": candidate.index,
            "stage": stage,
            "budget": candidate.budget,
            "origin": strategy.origin,
            "widths": list(strategy.widths),
            "macs": strategy.macs,
            "params": strategy.params,
            "latency_ms": candidate.latency_ms,
            "loss": None,
            "top1": None,
            "num_images": 0,
        }
        try:
            metrics = self.score(strategy.widths, share)
            finite = math.isfinite(metrics.loss)
            row |= {"loss": metrics.loss if finite else None, "top1": metrics.top1, "num_images": metrics.num_images}
            status = "ok" if finite else "the loss is not a finite number"
        except (RuntimeError, ArithmeticError) as error:  # out of memory included; one bad candidate ends no search
            status = f"{type(error).__name__}: {error}"
        seconds = time.perf_counter() - started
        return row | {"seconds": round(seconds, 4), "elapsed": round(self.elapsed, 2), "status": status}
