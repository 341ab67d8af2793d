"""The flag that every command has."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class PrintConfig:
    """What is printed."""

    json: bool = False
    """Print JSON, for machines."""
