"""How candidates are scored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from eagleeye_hf.configs import Within, check_fields

FormatName = Literal["auto", "measured", "float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class ScoringConfig:
    """Adaptive BatchNorm evaluation."""

    scores: Literal["auto", "adaptive", "compensated"] = "auto"
    """Of candidates with recomputed statistics (adaptive), or with the layers that read removed channels repaired by
    least squares too (compensated); auto: the latter, where the former leaves typical candidates near chance."""
    format: FormatName = "auto"
    """Precision of scoring. `auto`: bfloat16 on devices made for it, the same at every start; `measured`: the fastest;
    both only where it ranks like float32."""
    scoring_threads: Annotated[int, Within("[1, inf)")] | None = None
    """Candidates that a process scores at a time on a CPU, each on one thread; None: one per core, as far as half of
    the free memory goes. Scores do not depend on it."""

    def __post_init__(self) -> None:
        check_fields(self)
