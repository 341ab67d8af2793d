"""Errors of the device, told apart from bad candidates, and the same in every process."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from eagleeye_hf.errors import EagleEyeError

OF_THE_DEVICE = (RuntimeError, ArithmeticError, MemoryError)
NO_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "alloc_failed")
"""Parts of messages of errors that have no class of their own."""

Made = TypeVar("Made")


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
        first_line = (str(error).strip() or "no message").splitlines()[0]
        message = f"{what} failed ({type(error).__name__}: {first_line:.300})"
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


def make_in_main(accelerator: Accelerator, make: Callable[[], Made]) -> Made:
    """What the main process makes, in every process.

    Raises:
        EagleEyeError: it could not be made; the same in every process.
    """
    if accelerator.num_processes == 1:
        return make()
    made, message = None, ""
    if accelerator.is_main_process:
        try:
            made = make()
        except EagleEyeError as error:
            message = str(error)
    made, message = broadcast_object_list([made, message])
    if message:
        raise EagleEyeError(message)
    return made
