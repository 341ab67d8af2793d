"""Memory format and precision of forward passes: what the device is made for, or what a measurement finds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from eagleeye_hf.networks.running import synchronize


@dataclass(frozen=True, kw_only=True)
class Format:
    channels_last: bool = False
    bfloat16: bool = False
    """Convolutions and matrix products in bfloat16; statistics and losses stay in float32 or better."""

    def autocast(self, device: torch.device) -> AbstractContextManager[None]:
        return torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.bfloat16)

    def convert(self, images: Tensor) -> Tensor:
        layout = torch.channels_last if self.channels_last and images.ndim == 4 else torch.contiguous_format
        dtype = torch.bfloat16 if self.bfloat16 else images.dtype
        return images.to(dtype=dtype, memory_format=layout)

    def __str__(self) -> str:
        return f"{'channels_last' if self.channels_last else 'NCHW'} {'bfloat16' if self.bfloat16 else 'float32'}"


@dataclass(frozen=True, kw_only=True)
class FormatChoice:
    """The format that a search scores in, and why."""

    chosen: Format
    images_per_second: dict[str, float]
    """By format."""
    rank_correlation: float | None
    """With float32, on the examples; None where it was not asked for."""

    def __str__(self) -> str:
        if self.rank_correlation is None:
            return str(self.chosen)
        return f"{self.chosen} (rank correlation of bfloat16 with float32: {self.rank_correlation:.2f})"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> FormatChoice:
        return FormatChoice(**{**data, "chosen": Format(**data["chosen"])})


FORMATS = [Format(channels_last=last, bfloat16=half) for half in (False, True) for last in (False, True)]
NEARLY = 0.9
SAME_RANKING = 0.9
"""Least rank correlation with float32 at which a lower precision may score."""


def native_format(device: torch.device) -> Format:
    """What the device is made for; always the same on the same device."""
    if device.type == "cuda":
        return Format(channels_last=True, bfloat16=torch.cuda.is_bf16_supported(including_emulation=False))
    probes = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")  # as far as this PyTorch knows them
    has_bfloat16 = device.type == "cpu" and any(getattr(torch.cpu, probe, bool)() for probe in probes)
    return Format(channels_last=True, bfloat16=has_bfloat16)


def time_formats(
    build: Callable[[Format], nn.Module], images: Tensor, device: torch.device, rounds: int = 3
) -> dict[Format, float]:
    """Images per second of each format on one batch, median of turns; those that fail are left out."""
    times: dict[Format, list[float]] = {}
    failure: RuntimeError | None = None
    for round_number in range(rounds + 1):
        for candidate in FORMATS:
            if round_number and candidate not in times:
                continue
            try:
                model, batch = build(candidate), candidate.convert(images.to(device))
                with torch.no_grad(), candidate.autocast(device):
                    synchronize(device)
                    started = time.perf_counter()
                    model(batch)
                    synchronize(device)
                times.setdefault(candidate, []).append(time.perf_counter() - started)
            except RuntimeError as error:  # an operator without this precision on this device
                failure = error
                times.pop(candidate, None)
    if failure is not None and not times:
        raise failure
    return {
        candidate: len(images) / statistics.median(turns[1:]) for candidate, turns in times.items() if len(turns) > 1
    }


def fastest_format(speeds: Mapping[Format, float]) -> Format:
    """The first of `FORMATS`, the plainest, that is nearly as fast as the fastest, so that noise does not tip the
    choice, and bfloat16 has to be worth it."""
    fastest = max(speeds.values())
    return next(candidate for candidate in FORMATS if speeds.get(candidate, 0.0) > NEARLY * fastest)


def choose_format(speeds: Mapping[Format, float], losses: Callable[[Format], Sequence[float]]) -> FormatChoice:
    """The plainest of the fastest formats, in lower precision only where that ranks like float32.

    Args:
        losses: of the examples in a format.
    """
    safe = fastest_format({f: speed for f, speed in speeds.items() if not f.bfloat16})
    speed_by_name = {str(f): round(speed, 1) for f, speed in speeds.items()}
    return check_format(fastest_format(speeds), safe, losses, speed_by_name)


def check_format(
    wanted: Format,
    safe: Format,
    losses: Callable[[Format], Sequence[float]],
    images_per_second: Mapping[str, float] | None = None,
) -> FormatChoice:
    """The wanted format, or the safe one where the wanted has a lower precision that fails or ranks otherwise."""
    agreement = None
    if wanted.bfloat16:
        try:
            pair = [losses(safe), losses(wanted)]
            agreement = rank_correlation(*pair) if np.all(np.isfinite(pair)) else 0.0
        except RuntimeError:  # an operator without this precision on this device
            agreement = 0.0
    chosen = safe if agreement is not None and agreement < SAME_RANKING else wanted
    return FormatChoice(chosen=chosen, images_per_second=dict(images_per_second or {}), rank_correlation=agreement)


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's, ties by order; 1 where there is nothing to rank."""
    if len(first) < 2:
        return 1.0
    ranks = [np.argsort(np.argsort(np.asarray(values), kind="stable")) for values in (first, second)]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])
