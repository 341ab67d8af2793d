"""Scoring candidates, divided among processes and threads, each one recorded as soon as it is finished."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from eagleeye_hf.evaluation.objective import Score
from eagleeye_hf.search.candidate import Candidate, Line, Scored, Timed
from eagleeye_hf.search.journal import Journal
from eagleeye_hf.search.scorer import Scorer


class Workers:
    """Runs a scorer on many candidates; every process gets every result.

    Args:
        journal: keeps what is finished, in the main process; None keeps nothing.
        lines: what earlier lives of this search finished.
        started: when this life of the search began, by `time.perf_counter`.
    """

    def __init__(
        self,
        score: Scorer,
        accelerator: Accelerator,
        journal: Journal | None,
        lines: Sequence[Line],
        started: float,
    ) -> None:
        self.score, self.accelerator, self.journal = score, accelerator, journal
        self.threads = max(1, score.workers)
        self.scored = {(line.index, line.stage): line for line in lines if isinstance(line, Scored)}
        self.timed = {line.index: line for line in lines if isinstance(line, Timed)}
        self._started = started - max((line.elapsed for line in lines), default=0.0)

    @property
    def elapsed(self) -> float:
        """Seconds of all lives of this search."""
        return time.perf_counter() - self._started

    def run(self, candidates: Sequence[Candidate], stage: int, fraction: float) -> Iterator[Scored]:
        """The journal's line of each candidate at this stage: those on record first, others as they finish."""
        pending = []
        for candidate in candidates:
            line = self.scored.get((candidate.index, stage))
            if line is None:
                pending.append(candidate)
            else:
                yield line
        size, rank = self.accelerator.num_processes, self.accelerator.process_index
        if size == 1:
            for line in self._run_here(pending, stage, fraction):
                yield self._record_score(line)
            return
        step = size * self.threads
        for start in range(0, len(pending), step):
            here = list(self._run_here(pending[start : start + step][rank::size], stage, fraction))
            for line in gather_object(here):
                yield self._record_score(line)

    def record_times(self, lines: list[Timed]) -> list[Timed]:
        """The main process's measurements, recorded, in every process."""
        if self.accelerator.num_processes > 1:
            lines = broadcast_object_list([lines])[0]
        for line in lines:
            self.timed[line.index] = line
            self._write(line)
        return lines

    def _record_score(self, line: Scored) -> Scored:
        self.scored[line.index, line.stage] = line
        self._write(line)
        return line

    def _write(self, line: Line) -> None:
        if self.journal:
            self.journal.append(line)

    def _run_here(self, candidates: Sequence[Candidate], stage: int, fraction: float) -> Iterable[Scored]:
        if self.threads == 1:
            for candidate in candidates:
                yield self._score_one(candidate, stage, fraction)
            return
        with ThreadPoolExecutor(self.threads) as pool:
            futures = [pool.submit(self._score_one, candidate, stage, fraction) for candidate in candidates]
            try:
                for future in as_completed(futures):
                    yield future.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _score_one(self, candidate: Candidate, stage: int, fraction: float) -> Scored:
        started = time.perf_counter()
        score: Score | None = None
        try:
            score = self.score(candidate.strategy, fraction)
            status = "ok"
            if not math.isfinite(score.loss):
                score, status = None, "the loss is not a finite number"
        except (RuntimeError, ArithmeticError) as error:  # out of memory included; one bad candidate ends no search
            status = f"{type(error).__name__}: {error}"
        seconds = time.perf_counter() - started
        return Scored(
            candidate=candidate,
            stage=stage,
            score=score,
            status=status,
            seconds=round(seconds, 4),
            elapsed=round(self.elapsed, 2),
        )
