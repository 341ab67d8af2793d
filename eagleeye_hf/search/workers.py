"""Scoring candidates, divided among processes and threads, each one recorded as soon as it is finished."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import gather_object

from eagleeye_hf.errors import EagleEyeError
from eagleeye_hf.evaluation.objective import Score
from eagleeye_hf.processes import make_in_main
from eagleeye_hf.search.candidate import Candidate, Line, Scored, Timed
from eagleeye_hf.search.failures import OutOfMemory, free_memory, named_errors, remedy_of
from eagleeye_hf.search.journal import Journal
from eagleeye_hf.search.lines import settle_lines
from eagleeye_hf.search.scorer import Scorer

NOT_FINITE = "the score is not a finite number"
"""What is recorded of a candidate that fails; whatever else goes wrong ends the search and is no candidate's fault."""


class Workers:
    """Runs a scorer on many candidates; every process gets every result, and every error.

    Args:
        journal: keeps what is finished, in the main process; None keeps nothing.
        lines: what earlier lives of this search finished; what failed there is tried again.
        started: when this life of the search began, by `time.perf_counter`.
        output: the folder of the journal, in every process.
    """

    def __init__(
        self,
        score: Scorer,
        accelerator: Accelerator,
        journal: Journal | None,
        lines: Sequence[Line],
        started: float,
        output: Path | None = None,
    ) -> None:
        self.score, self.accelerator, self.journal, self.output = score, accelerator, journal, output
        self.threads = max(1, score.workers)
        standing = settle_lines(lines)
        self.scored = {key: line for key, line in standing.scored.items() if line.score is not None}
        self.timed = standing.timed
        self._failed = {key: line for key, line in standing.scored.items() if line.score is None}
        self._healed = standing.healed
        self._started = started - max((line.elapsed for line in lines), default=0.0)

    @property
    def elapsed(self) -> float:
        """Seconds of all lives of this search."""
        return time.perf_counter() - self._started

    def run(self, candidates: Sequence[Candidate], stage: int, fraction: float) -> Iterator[Scored]:
        """The journal's line of each candidate at this stage: those on record first, others as they finish.

        Raises:
            EagleEyeError: the device fails, the journal can't be written, or holds what this search does not propose.
        """
        pending = []
        for candidate in candidates:
            line = self.scored.get((candidate.index, stage))
            if line is not None and self._is_of(line, candidate):
                yield line
            else:
                pending.append(candidate)
        size, rank = self.accelerator.num_processes, self.accelerator.process_index
        if size == 1:
            for line in self._run_here(pending, stage, fraction):
                yield self._record([line])[0]
            return
        step = size * self.threads
        for start in range(0, len(pending), step):
            part = pending[start : start + step][rank::size]
            yield from self._run_together(part, stage, fraction)

    def _run_together(self, part: Sequence[Candidate], stage: int, fraction: float) -> list[Scored]:
        """The lines of all processes, of which each scores its part; what finished before an error is recorded."""
        here, message = list[Scored](), ""
        try:
            for line in self._run_here(part, stage, fraction):
                here.append(line)
        except EagleEyeError as error:
            message = str(error)
        everywhere = gather_object([(here, message)])
        found = self._record([line for lines, _ in everywhere for line in lines])
        for _, message in everywhere:
            if message:
                raise EagleEyeError(message)
        return found

    def _is_of(self, line: Scored, candidate: Candidate) -> bool:
        """Whether a line is of what is proposed; where a failure turned out to be none, later proposals change."""
        old = line.candidate
        pairs = {
            "strategy": (old.strategy, candidate.strategy),
            "origin": (old.origin, candidate.origin),
            "budget": (old.budget, candidate.budget),
            "cost": (old.cost, candidate.cost),
        }
        changed = [what for what, (then, now) in pairs.items() if then != now]
        if not changed:
            return True
        if not self._healed:
            raise EagleEyeError(
                f"`output={self.output}`: what its search.jsonl holds of candidate {line.index} was written by another "
                f"version or edited (another {', '.join(changed)} than this search proposes); choose another folder"
            )
        for key in [key for key in self.scored if key[0] == line.index]:
            del self.scored[key]
        self.timed.pop(line.index, None)
        return False

    def record_times(self, measure: Callable[[], list[Timed]]) -> list[Timed]:
        """What the main process measures, recorded, in every process."""

        def make() -> list[Timed]:
            lines = measure()
            self._write(lines)
            return lines

        lines = make_in_main(self.accelerator, make)
        self.timed |= {line.index: line for line in lines}
        return lines

    def _record(self, lines: list[Scored]) -> list[Scored]:
        make_in_main(self.accelerator, lambda: self._write(lines))
        for line in lines:
            key = line.index, line.stage
            self._healed |= key in self._failed and line.score is not None
            self.scored[key] = line
        return lines

    def _write(self, lines: Sequence[Line]) -> None:
        for line in lines if self.journal else ():
            self.journal.append(line)  # type: ignore[union-attr]

    def _run_here(self, candidates: Sequence[Candidate], stage: int, fraction: float) -> Iterator[Scored]:
        """Those for which there was no memory are tried once more at the end, one at a time."""
        again = []
        for candidate, line in self._try_each(candidates, stage, fraction):
            if line is None:
                again.append(candidate)
            else:
                yield line
        for candidate in again:
            free_memory()
            yield self._score_one(candidate, stage, fraction)

    def _try_each(
        self, candidates: Sequence[Candidate], stage: int, fraction: float
    ) -> Iterable[tuple[Candidate, Scored | None]]:
        def attempt(candidate: Candidate) -> tuple[Candidate, Scored | None]:
            try:
                return candidate, self._score_one(candidate, stage, fraction)
            except OutOfMemory:
                return candidate, None

        if self.threads == 1:
            yield from map(attempt, candidates)
            return
        with ThreadPoolExecutor(self.threads) as pool:
            futures = [pool.submit(attempt, candidate) for candidate in candidates]
            try:
                for future in as_completed(futures):
                    yield future.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _score_one(self, candidate: Candidate, stage: int, fraction: float) -> Scored:
        started = time.perf_counter()
        score: Score | None = None
        with named_errors(f"scoring candidate {candidate.index}", remedy_of(self.output)):
            try:
                score = self.score(candidate.strategy, fraction)
            except FloatingPointError:
                score = None
        if score is not None and not (math.isfinite(score.loss) and math.isfinite(score.reported)):
            score = None
        failed = self._failed.get((candidate.index, stage))
        return Scored(
            candidate=candidate,
            stage=stage,
            score=score,
            status=NOT_FINITE if score is None else "ok",
            seconds=round(time.perf_counter() - started, 4),
            elapsed=failed.elapsed if failed else round(self.elapsed, 2),  # what came after it came in time
        )
