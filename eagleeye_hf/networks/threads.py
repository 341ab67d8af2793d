"""Results that do not depend on the number of threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class _Alone:
    """How many blocks of `one_thread` are running in this process, and the number of threads to go back to."""

    lock = threading.Lock()
    count = 0
    threads = 1


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums of floating point numbers depend on how many threads share them, and scores must not.

    Part of the setting is the process's, so it is taken back when the last of several such blocks ends.
    """
    with _Alone.lock:
        if not _Alone.count:
            _Alone.threads = torch.get_num_threads()
        _Alone.count += 1
    torch.set_num_threads(1)
    try:
        yield
    finally:
        with _Alone.lock:
            _Alone.count -= 1
            if not _Alone.count:
                torch.set_num_threads(_Alone.threads)
