"""The scoring threads of a process, alive as long as its search."""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch

from eagleeye_hf.search.candidate import Scored, Task
from eagleeye_hf.search.failures import OutOfMemory, free_memory, named_errors, remedy_of
from eagleeye_hf.search.scorer import Scorer

NOT_FINITE = "the score is not a finite number"
"""What is recorded of a candidate that fails; whatever else goes wrong ends the search and is no candidate's fault."""

Inbox = queue.SimpleQueue[tuple[int, object]]
"""Messages, each with the process that it comes from."""


class Pool:
    """Scores tasks in threads; what comes of each goes into `done`: a line, or the error that ends the search.

    A task for which there was no memory is tried once more, alone in this process.

    Args:
        device: of the scorer; threads begin with another.
        output: the journal's folder, for messages.
    """

    def __init__(
        self,
        score: Scorer,
        device: torch.device,
        output: Path | None,
        done: Inbox,
        rank: int,
    ) -> None:
        self.score, self.output, self.done, self.rank = score, output, done, rank
        self.num_threads = max(1, score.workers)
        self._gate = _Gate()
        self._threads = ThreadPoolExecutor(self.num_threads, "score", _use_device, (device,))

    def submit(self, task: Task) -> None:
        self._threads.submit(self._run, task).add_done_callback(self._finish)

    def close(self) -> None:
        """Wait for the tasks that are running, and forget the others."""
        self._threads.shutdown(cancel_futures=True)

    def _finish(self, future: Future[Scored]) -> None:
        if not future.cancelled():
            self.done.put((self.rank, future.exception() or future.result()))

    def _run(self, task: Task) -> Scored:
        try:
            with self._gate.among_others():
                return self._score(task)
        except OutOfMemory:
            pass
        with self._gate.alone():
            free_memory()
            return self._score(task)

    def _score(self, task: Task) -> Scored:
        started = time.perf_counter()
        with named_errors(f"scoring candidate {task.candidate.index}", remedy_of(self.output)):
            try:
                score = self.score(task.candidate.strategy, task.fraction, task.before, task.matched)
            except FloatingPointError:
                score = None
        if score is not None and not (math.isfinite(score.loss) and math.isfinite(score.reported)):
            score = None
        return Scored(
            candidate=task.candidate,
            stage=task.stage,
            score=score,
            status=NOT_FINITE if score is None else "ok",
            seconds=round(time.perf_counter() - started, 4),
            elapsed=0.0,
        )


def _use_device(device: torch.device) -> None:
    if device.type == "cuda" and device.index is not None:  # "cuda" alone is the one that is current
        torch.cuda.set_device(device)


class _Gate:
    """Lets threads in together, or one alone."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside, self._waiting = 0, 0

    @contextmanager
    def among_others(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting)
            self._inside += 1
        try:
            yield
        finally:
            self._leave()

    @contextmanager
    def alone(self) -> Iterator[None]:
        with self._changed:
            self._waiting += 1
            self._changed.wait_for(lambda: not self._inside)
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._waiting -= 1
            self._leave()

    def _leave(self) -> None:
        with self._changed:
            self._inside -= 1
            self._changed.notify_all()
