"""Milliseconds of results, in every runtime at hand; and what becomes of them in 8-bit integers."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import nn

from eagleeye_hf.networks.running import device_of
from eagleeye_hf.runtimes.config import LatencyConfig, RuntimeName
from eagleeye_hf.runtimes.latency import NOISY, Latency, compare_latency
from eagleeye_hf.runtimes.runtime import Runtime, find_runtime, runtimes_here
from eagleeye_hf.search.timing import LATENCY_SLACK
from eagleeye_hf.strategies.budget import Limit
from eagleeye_hf.telling import warn


def deployments(measuring: LatencyConfig, device: torch.device, everywhere: bool = True) -> list[Runtime]:
    """Where results are measured: in the runtime asked for, quantised too if that is asked for, and in PyTorch.

    Args:
        everywhere: also in the others that are installed here.
    """
    plain = replace(measuring, int8=False)
    chosen = [find_runtime(measuring, device)] + ([find_runtime(plain, device)] if measuring.int8 else [])
    names = {runtime.place.runtime for runtime in chosen}
    here: list[RuntimeName] = runtimes_here(device) if everywhere else ["torch"]
    others = [replace(plain, runtime=name) for name in here if name not in names]
    return chosen + [find_runtime(config, device) for config in others]


def measure_result(
    full: nn.Module,
    thin: nn.Module,
    input_size: Sequence[int],
    measuring: LatencyConfig,
    rounds: int = 40,
    thin_size: Sequence[int] | None = None,
) -> list[Latency]:
    """A network beside the full one, in the runtime asked for first, and in PyTorch.

    A runtime that can't run it is left out, with a warning.

    Args:
        thin_size: of its images, where it is not the full network's.
    """
    found = list[Latency]()
    for runtime in deployments(measuring, device_of(full), everywhere=False):
        with left_out(runtime):
            found += compare_latency(full, [thin], input_size, runtime, rounds, thin_size)
    warn_noisy(found)
    return found


@contextmanager
def left_out(runtime: Runtime) -> Iterator[None]:
    """A runtime that can't run a network is left out of a table, with a warning."""
    try:
        yield
    except Exception as error:  # exporters and runtimes raise many kinds, and a whole run must not end with them
        text = " ".join(str(error).split())
        warnings.warn(
            f"milliseconds in {runtime.place} are left out ({type(error).__name__}: {text:.300})", stacklevel=4
        )


def warn_noisy(measured: Iterable[Latency]) -> None:
    """Say once per runtime where milliseconds are to be taken with care."""
    worst: dict[str, float] = {}
    for latency in measured:
        if latency.noise > NOISY:
            worst[str(latency.place)] = max(latency.noise, worst.get(str(latency.place), 0.0))
    for place, noise in worst.items():
        warn(
            f"milliseconds in {place} vary by {noise:.0%} between rounds: the machine is busy; the fastest are given, "
            "measure again when it is quiet"
        )


def judge_latency(latency: Latency, limit: Limit | None) -> list[str]:
    """What a user has to know of a result's milliseconds in the runtime that was asked for; nothing if all is well."""
    notes = []
    if limit is not None:
        bound = limit.bound(latency.full_ms)
        if latency.milliseconds > bound * (1 + LATENCY_SLACK):
            notes.append(
                f"the result takes {latency.milliseconds:.3g} ms in {latency.place}, "
                f"{latency.milliseconds / bound - 1:.1%} more than the budget's {bound:.3g} ms"
            )
    if latency.milliseconds > latency.full_ms:
        notes.append(
            f"the result is slower than the full network in {latency.place}: {latency.milliseconds:.3g} ms where that "
            f"takes {latency.full_ms:.3g}. Ask for milliseconds (`--latency 0.5`), or for wider steps (`--divisor 16`)"
        )
    return notes
