"""Scoring candidates, handed out to processes and threads one by one, each one recorded as soon as it is finished."""

from __future__ import annotations

import gc
import heapq
import queue
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from accelerate import Accelerator

from eagleeye_hf.errors import EagleEyeError
from eagleeye_hf.processes import make_in_main
from eagleeye_hf.search.candidate import Candidate, Line, Scored, Task, Timed
from eagleeye_hf.search.journal import Journal
from eagleeye_hf.search.lines import settle_lines
from eagleeye_hf.search.links import Links, Lost
from eagleeye_hf.search.pool import Inbox, Pool
from eagleeye_hf.search.scorer import Scorer

Made = TypeVar("Made")
Follow = Callable[[Sequence[Scored]], list[Task]]
"""What there is to score once these lines are known."""
AHEAD = 1
"""Short tasks that a process has beside those in its threads, so that it does not wait for the next one."""
DECIDER = -1
"""In place of a process's number: messages of the thread that proposes and records."""


class Workers:
    """Runs a scorer on many candidates. The main process hands them out and records them; others score and wait.

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
        standing = settle_lines(lines)
        self.scored = {key: line for key, line in standing.scored.items() if line.score is not None}
        self.timed = standing.timed
        self._failed = {key: line for key, line in standing.scored.items() if line.score is None}
        self._healed = standing.healed
        self._started = started - max((line.elapsed for line in lines), default=0.0)

    @property
    def is_main(self) -> bool:
        """Whether this process decides and records."""
        return self.accelerator.is_main_process

    @property
    def elapsed(self) -> float:
        """Seconds of all lives of this search."""
        return time.perf_counter() - self._started

    def run(self, follow: Follow, result: Callable[[], Made]) -> Made:
        """Score what follows from what is known, until nothing follows.

        Args:
            follow: called in the main process alone, with no line at first, then with lines as they are finished.
            result: called there in the end.
        Returns:
            The result, in every process.
        Raises:
            EagleEyeError: the device fails, a process ends, the journal can't be written, or holds what this search
                does not propose; the same in every process.
        """
        inbox: Inbox = queue.SimpleQueue()
        rank = self.accelerator.process_index
        links = Links(self.accelerator, inbox)
        pool = Pool(self.score, self.accelerator.device, self.output, inbox, rank)
        gc.collect()  # networks that were recorded to prepare scoring would stay on the device
        gc.freeze()  # a collection looks at all that was there before, in each process: a quarter of a second
        try:
            if not self.is_main:
                return _serve(links, pool, inbox, rank)
            self._hand_out(follow, links, pool, inbox)
            made = result()
            links.send_all(_End(made))
            return made
        finally:
            gc.unfreeze()
            pool.close()
            links.close()

    def _hand_out(self, follow: Follow, links: Links, pool: Pool, inbox: Inbox) -> None:
        hands = _Hands(links, pool)
        lines: list[Scored] = []
        deciding = True
        with ThreadPoolExecutor(1, "decide") as decider:  # so that handing out never waits
            decider.submit(self._decide, follow, lines, inbox)
            while deciding or lines or hands.busy:
                for rank, message in _drain(inbox):
                    if rank != DECIDER:
                        lines += hands.take(rank, message)
                    elif isinstance(message, list):
                        hands.add(message)
                    else:
                        deciding = False
                        hands.failure = hands.failure or message  # type: ignore[assignment]
                hands.give()
                if lines and not deciding:
                    decider.submit(self._decide, None if hands.failure else follow, lines, inbox)
                    lines, deciding = [], True
        if isinstance(hands.failure, EagleEyeError):
            links.send_all(hands.failure)
        if hands.failure is not None:
            raise hands.failure

    def _decide(self, follow: Follow | None, lines: Sequence[Scored], inbox: Inbox) -> None:
        """Tell what follows from these lines, then record them; None or an error says that this is done."""
        failure: BaseException | None = None
        try:
            lines = [self._finished(line) for line in lines]
            if follow is not None:
                inbox.put((DECIDER, self._look_up(follow, lines)))
            self._record(lines)
        except BaseException as error:
            failure = error
        inbox.put((DECIDER, failure))

    def _look_up(self, follow: Follow, lines: Sequence[Scored]) -> list[Task]:
        """What follows from these lines, and from those on record that follow."""
        found = []
        while True:
            pending, lines = follow(lines), []
            for task in pending:
                line = self.scored.get((task.candidate.index, task.stage))
                if line is not None and self._is_of(line, task.candidate) and line.is_of(task):
                    lines = [*lines, line]
                else:
                    found.append(task)
            if not lines:
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

    def _finished(self, line: Scored) -> Scored:
        """A line with the time of the search; it is known from now on."""
        key = line.index, line.stage
        failed = self._failed.get(key)
        self._healed |= failed is not None and line.score is not None
        # what came after a failure came in time
        self.scored[key] = replace(line, elapsed=failed.elapsed if failed else round(self.elapsed, 2))
        return self.scored[key]

    def record_times(self, measure: Callable[[], list[Timed]]) -> list[Timed]:
        """What the main process measures, recorded, in every process."""

        def make() -> tuple[list[Timed], dict[int, Timed]]:
            lines = measure()
            self._record(lines)
            return lines, self.timed | {line.index: line for line in lines}

        lines, self.timed = make_in_main(self.accelerator, make)  # the main process alone forgets what was healed
        return lines

    def _record(self, lines: Sequence[Line]) -> None:
        if self.journal is not None and lines:
            self.journal.append(lines)


class _Hands:
    """Who scores what: tasks of the last stage first, for they take longest, to whoever has most threads free."""

    def __init__(self, links: Links, pool: Pool) -> None:
        self.links, self.pool = links, pool
        self.failure: BaseException | None = None
        """What ends the search, once what was running is finished."""
        self._pending: list[tuple[int, int, Task]] = []
        self._free = {0: pool.num_threads}
        self._running = dict.fromkeys([0, *links.ranks], 0)

    @property
    def busy(self) -> bool:
        return any(self._running.values()) or (bool(self._pending) and self.failure is None)

    def add(self, tasks: Sequence[Task]) -> None:
        for task in tasks:
            heapq.heappush(self._pending, (-task.stage, task.candidate.index, task))

    def take(self, rank: int, message: object) -> list[Scored]:
        """The line that a process sent, if it is one."""
        if isinstance(message, int):  # it is there, with so many threads
            self._free[rank] = message
            return []
        if isinstance(message, Lost):
            self._running[rank] = self._free[rank] = 0
            self.failure = self.failure or EagleEyeError(f"process {rank} of the search ended; it tells why")
            return []
        self._free[rank] += 1
        self._running[rank] -= 1
        if isinstance(message, Scored):
            return [message]
        assert isinstance(message, BaseException)
        self.failure = self.failure or message
        return []

    def give(self) -> None:
        while self._pending and self.failure is None:
            rank = max(self._free, key=lambda rank: self._free[rank])
            ahead = AHEAD if self._pending[0][-1].fraction < 1 else 0
            if self._free[rank] + ahead <= 0:
                return
            self._free[rank] -= 1
            self._running[rank] += 1
            task = heapq.heappop(self._pending)[-1]
            if rank:
                self.links.send(rank, task)
            else:
                self.pool.submit(task)


def _drain(inbox: Inbox) -> list[tuple[int, object]]:
    """The messages that are there, at least one."""
    messages = [inbox.get()]
    while not inbox.empty():
        messages.append(inbox.get())
    return messages


class _End(NamedTuple):
    """The last message to a process."""

    made: Any


def _serve(links: Links, pool: Pool, inbox: Inbox, own: int) -> Any:
    """Score what the main process hands out, until it sends the result, or why there is none."""
    links.send(0, pool.num_threads)
    while True:
        rank, message = inbox.get()
        if isinstance(message, Task):
            pool.submit(message)
        elif isinstance(message, Lost):
            raise EagleEyeError("the main process of the search ended; it tells why")
        elif isinstance(message, _End):
            return message.made
        elif rank == own and isinstance(message, (Scored, EagleEyeError)):
            links.send(0, message)
        elif isinstance(message, BaseException):  # what ends the search, or a mistake in the scorer
            raise message
