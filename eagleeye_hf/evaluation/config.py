"""How candidates are scored."""

from __future__ import annotations

from dataclasses import dataclass

from eagleeye_hf.configs import check_fields


@dataclass(frozen=True, kw_only=True)
class ScoringConfig:
    """Adaptive BatchNorm evaluation."""

    score_compensated: bool = False
    """Repair every candidate by least squares before it is scored, too."""

    def __post_init__(self) -> None:
        check_fields(self)
