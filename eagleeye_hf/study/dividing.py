"""Work on many sub-nets, divided among processes, each one's result recorded as soon as it is there."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from accelerate import Accelerator
from accelerate.utils import gather_object

from eagleeye_hf.errors import EagleEyeError
from eagleeye_hf.processes import make_in_main
from eagleeye_hf.search.candidate import Candidate
from eagleeye_hf.study.journal import Line, StudyJournal
from eagleeye_hf.telling import LOGGER, progress_bar


def divide_work(
    candidates: Sequence[Candidate],
    work: Callable[[Candidate], Line],
    journal: StudyJournal[Line] | None,
    accelerator: Accelerator,
    title: str,
) -> dict[int, Line]:
    """The line of every candidate, by its index, in every process; those on record are not made again.

    Args:
        journal: in the main process.
        title: of the progress bar.
    Raises:
        EagleEyeError: a process fails; what is done is kept.
    """
    lines = make_in_main(accelerator, lambda: dict(journal.lines) if journal is not None else {})
    pending = [candidate for candidate in candidates if candidate.index not in lines]
    size, rank = accelerator.num_processes, accelerator.process_index
    with progress_bar(total=len(candidates), initial=len(candidates) - len(pending), desc=title) as bar:
        for start in range(0, len(pending), size):
            here = [_try_work(work, candidate) for candidate in pending[start : start + size][rank::size]]
            everywhere = here if size == 1 else gather_object(here)
            found = [line for line, _ in everywhere if line is not None]
            make_in_main(accelerator, lambda found=found: _record(journal, found))  # type: ignore[misc]
            lines |= {line.index: line for line in found}
            bar.update(len(found))
            for _, message in everywhere:
                if message:
                    raise EagleEyeError(message)
    return {candidate.index: lines[candidate.index] for candidate in candidates}


def _try_work(work: Callable[[Candidate], Line], candidate: Candidate) -> tuple[Line | None, str]:
    try:
        with quiet():
            return work(candidate), ""
    except EagleEyeError as error:
        return None, f"sub-net {candidate.index}: {error}"


def _record(journal: StudyJournal[Line] | None, lines: Sequence[Line]) -> None:
    assert journal is not None
    for line in lines:
        journal.append(line)


@contextmanager
def quiet() -> Iterator[None]:
    """Without the lines of each training among many."""
    level = LOGGER.level
    LOGGER.setLevel(logging.WARNING)
    try:
        yield
    finally:
        LOGGER.setLevel(level)
