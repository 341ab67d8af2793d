"""The processes of a run: which one speaks, how they wait for one another, and how they end."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from eagleeye_hf.errors import EagleEyeError

if TYPE_CHECKING:
    from accelerate import Accelerator

Made = TypeVar("Made")
LONGEST_WAIT = timedelta(days=7)
"""For work of the main process alone, as an upload."""
WATCHED_SECONDS = 2.0
PATIENT: dict[str, Any] = {}
"""The connection for long work, made once, and the one that it belongs to."""


def is_main() -> bool:
    """Whether this is the process that writes and speaks; known before any process group is there."""
    return os.environ.get("RANK", "0") == "0"


def watch_launcher() -> None:
    """End this process soon after its launcher died: without it the others of the group would be waited for in vain."""
    if "RANK" not in os.environ:
        return
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(WATCHED_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def main_process_works() -> Iterator[None]:
    """Around work of the main process alone, however long it takes: the others wait at the end.

    So do all that are faster, where each does a part of it.
    """
    group = patient_group()
    yield
    if group is not None:
        _distributed().barrier(group=group)


@contextmanager
def alone() -> Iterator[Accelerator]:
    """An accelerator with which this process works for itself, while the others do so beside it."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType

    states = [vars(PartialState()), vars(AcceleratorState())]
    lone = {"distributed_type": DistributedType.NO, "num_processes": 1, "process_index": 0}
    before = [{name: state[name] for name in lone} for state in states]
    try:
        for state in states:
            state.update(lone)
        yield Accelerator()
    finally:
        for state, values in zip(states, before, strict=True):
            state.update(values)


def make_in_main(accelerator: Accelerator | None, make: Callable[[], Made]) -> Made:
    """What the main process makes, however long it takes, in every process.

    Raises:
        EagleEyeError: it could not be made; the same in every process.
    """
    if accelerator is None or accelerator.num_processes == 1:
        return make()
    made, message = None, ""
    with main_process_works():
        if accelerator.is_main_process:
            try:
                made = make()
            except EagleEyeError as error:
                message = str(error)
    told: list[Any] = [made, message]
    _distributed().broadcast_object_list(told, src=0, group=patient_group())  # not by way of a GPU's memory
    made, message = told
    if message:
        raise EagleEyeError(message)
    return made


def gather_parts(accelerator: Accelerator | None, make: Callable[[], Made]) -> list[Made]:
    """What each process makes, in their order, in every process.

    Raises:
        EagleEyeError: one could not make it; the same in every process.
    """
    if accelerator is None or accelerator.num_processes == 1:
        return [make()]
    made, message, group = None, "", patient_group()
    try:
        made = make()
    except EagleEyeError as error:
        message = str(error)
    parts: list[Any] = [None] * accelerator.num_processes
    _distributed().all_gather_object(parts, (made, message), group=group)
    failed = next((told for _, told in parts if told), "")
    if failed:
        raise EagleEyeError(failed)
    return [part for part, _ in parts]


def leave_processes() -> None:
    """End the connection between the processes of a run together: one that just exits can abort those still talking."""
    if _distributed() is not None:
        from accelerate import PartialState

        state = PartialState()
        state.wait_for_everyone()
        state.destroy_process_group()
        PATIENT.clear()


def _distributed() -> Any:
    distributed = sys.modules.get("torch.distributed")
    ready = distributed is not None and distributed.is_available() and distributed.is_initialized()
    return distributed if ready else None


def patient_group() -> Any:
    """All processes, connected so that they wait for days; None where there is but one."""
    distributed = _distributed()
    if distributed is None:
        return None
    whole = distributed.group.WORLD
    if PATIENT.get("of") is not whole:  # that of an earlier connection is gone with it
        PATIENT.update(of=whole, group=distributed.new_group(backend="gloo", timeout=LONGEST_WAIT))
    return PATIENT["group"]
