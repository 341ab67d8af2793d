"""Faults of the Hub that pass, and those that don't; and one line about either."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

ATTEMPTS = 4
"""How often a request is tried; the client tries some of them again itself."""
BUSY = (408, 412, 429, 503)
"""Answers that say that nothing was done: the Hub is busy, or somebody else's commit came first."""
BROKEN = (500, 502, 504)

Result = TypeVar("Result")


def retry_call(call: Callable[[], Result], may_pass: Callable[[Exception], bool], attempts: int = ATTEMPTS) -> Result:
    """Call, and again after 1, 2 and 4 seconds where it failed for a reason that may pass."""
    for attempt in range(attempts):
        try:
            return call()
        except Exception as error:
            if attempt == attempts - 1 or not may_pass(error):
                raise
            time.sleep(2**attempt)
    raise AssertionError("unreachable")


def find_status(error: BaseException) -> int | None:
    """The HTTP status behind an error, if there was an answer at all."""
    answered = _find_answered(error)
    return None if answered is None else answered.response.status_code  # type: ignore[attr-defined]


def find_causes(error: BaseException) -> list[BaseException]:
    """The error and what it was raised from, down to the first."""
    causes: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in causes:
        causes.append(cause)
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return causes


def describe_cause(error: BaseException) -> str:
    """What happened, in one line: what the Hub answered, or else the first cause."""
    told = _find_answered(error) or find_causes(error)[-1]
    return (" ".join(str(told).split())[:300] or type(told).__name__).rstrip(".")


def _find_answered(error: BaseException) -> BaseException | None:
    return next((cause for cause in find_causes(error) if getattr(cause, "response", None) is not None), None)
