"""Errors of the device, told apart from bad candidates."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from eagleeye_hf.errors import EagleEyeError, describe_error

OF_THE_DEVICE = (RuntimeError, ArithmeticError, MemoryError)
NO_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "alloc_failed")
"""Parts of messages of errors that have no class of their own."""


class OutOfMemory(EagleEyeError):
    """Something did not fit in the memory of the device, or of the computer."""


@contextmanager
def named_errors(what: str, remedy: str = "") -> Iterator[None]:
    """
    Args:
        what: is done, to begin the message.
        remedy: ends it.
    Raises:
        OutOfMemory: there was no memory for it.
        EagleEyeError: the device failed.
    """
    try:
        yield
    except EagleEyeError:
        raise
    except OF_THE_DEVICE as error:
        message = f"{what} failed ({describe_error(error)})"
        if lacks_memory(error):
            raise OutOfMemory(
                f"{message}; free memory by ending other programs, or take a larger device{remedy}"
            ) from error
        raise EagleEyeError(f"{message}; the device or the scorer is at fault, not a candidate{remedy}") from error


def remedy_of(output: Path | None) -> str:
    """How to go on: only a journal keeps what is done."""
    return "" if output is None else "; what is done is kept: the same command goes on"


def lacks_memory(error: BaseException) -> bool:
    """Whether an error says that there was no memory."""
    told = str(error).lower()
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(words in told for words in NO_MEMORY)


def free_memory() -> None:
    """Give back what is only kept for later."""
    gc.collect()
    if torch.accelerator.is_available():
        with named_errors("emptying the device's caches"):
            getattr(torch.accelerator, "empty_cache", torch.cuda.empty_cache)()  # PyTorch 2.9 has it for all devices
