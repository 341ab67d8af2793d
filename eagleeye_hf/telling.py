"""What work tells while it goes on: lines by Python's `logging`, and bars where somebody looks at a terminal.

The logger is called `eagleeye_hf`; `logging.getLogger("eagleeye_hf").setLevel(logging.WARNING)` makes it quiet.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

from tqdm.auto import tqdm
from tqdm.std import tqdm as plain_tqdm

from eagleeye_hf.processes import is_main

LOGGER = logging.getLogger("eagleeye_hf")
LINE_SECONDS = 30.0
"""Between two lines of progress where there is no terminal."""


class _StandardError(logging.Handler):
    """Lines on the error stream that the process has at the time, above a bar where there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        prefix = "warning: " if record.levelno >= logging.WARNING else ""
        if sys.stderr.isatty():
            tqdm.write(f"{prefix}{record.getMessage()}", file=sys.stderr)
        else:  # where a bar is a line, drawing it again would be another
            print(f"{prefix}{record.getMessage()}", file=sys.stderr, flush=True)


if not LOGGER.handlers:
    LOGGER.addHandler(_StandardError())
    LOGGER.propagate = False
    LOGGER.setLevel(logging.INFO)


def say(text: str) -> None:
    """What a user may want to know."""
    LOGGER.info("%s", text)


def warn(text: str) -> None:
    """What a user should act on."""
    LOGGER.warning("%s", text)


class _Lines(plain_tqdm):
    """A bar that prints a line now and then."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options | {"mininterval": LINE_SECONDS, "miniters": 1})

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        if self.n > 0 and self.n != self.total:
            shown = self.format_dict
            rate = shown["rate"] or self.n / max(shown["elapsed"], 1e-9)
            of = f" of {self.total:,}, {self.format_interval((self.total - self.n) / rate)} left" if self.total else ""
            say(f"{self.desc.removesuffix(': ')}: {self.n:,}{of}{f', {self.postfix}' if self.postfix else ''}")
        return True

    def close(self) -> None:
        self.disable = True  # nothing to wipe away


def progress_bar(*arguments: Any, **options: Any) -> plain_tqdm:
    """`tqdm`, or a line now and then where the error stream is no terminal; only the main process has any."""
    options |= {} if is_main() else {"disable": True}
    return (tqdm if sys.stderr.isatty() else _Lines)(*arguments, **options)
