"""A journal read back, to be looked at."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eagleeye_hf.errors import EagleEyeError
from eagleeye_hf.search.journal import complete_lines
from eagleeye_hf.search.result import Candidate, rank_candidates
from eagleeye_hf.strategies.strategy import Strategy


@dataclass(frozen=True, kw_only=True)
class SearchRecord:
    """What a journal holds."""

    config: dict[str, Any]
    facts: dict[str, Any]
    candidates: tuple[Candidate, ...]
    """In the order of their index."""
    first_losses: dict[int, float]
    """By index: at the first stage, which all candidates have, on the same images."""
    elapsed: float
    """Seconds of the whole search."""

    @property
    def num_budgets(self) -> int:
        return 1 + max((candidate.budget for candidate in self.candidates), default=0)

    def leaders(self, budget: int = 0) -> list[Candidate]:
        return rank_candidates([c for c in self.candidates if c.budget == budget])

    def kept_shares(self, candidates: list[Candidate]) -> np.ndarray:
        """Shape `(num_candidates, num_groups)`."""
        return np.array([c.strategy.widths for c in candidates]) / np.array(self.config["channels"])

    def budget_name(self, budget: int) -> str:
        parts = []
        for name in ("macs", "params", "latency_ms"):
            value = self.config.get(name)
            if value is not None:
                parts.append(f"{name}={value[budget] if isinstance(value, list) else value}")
        return ", ".join(parts)


def read_journal(path: Path) -> SearchRecord:
    """Read `search.jsonl`, or the one in a folder; a search under way can be read too.

    Raises:
        EagleEyeError: there is none, it is no journal, or nothing is finished yet.
    """
    path = path / "search.jsonl" if path.is_dir() else path
    if not path.is_file():
        raise EagleEyeError(f"`journal={path}` does not exist; give the search.jsonl of a search, or its folder")
    head, *rows = complete_lines(path) or [{}]
    if not rows:
        raise EagleEyeError(f"`journal={path}` holds no finished candidate yet")
    candidates: dict[int, Candidate] = {}
    losses: dict[int, float] = {}
    stages = [row for row in rows if row["stage"] != "latency"]
    for row in sorted(stages, key=lambda row: row["stage"]) + [row for row in rows if row["stage"] == "latency"]:
        index = row["index"]
        if index not in candidates:
            candidates[index] = Candidate(
                index=index,
                budget=row["budget"],
                strategy=_strategy(row, head["config"]),
                latency_ms=row["latency_ms"],
            )
        candidates[index] = candidates[index].updated(row)
        if row["stage"] == 0 and row["loss"] is not None:
            losses[index] = row["loss"]
    return SearchRecord(
        config=head["config"],
        facts=head["facts"],
        candidates=tuple(candidates[index] for index in sorted(candidates)),
        first_losses=losses,
        elapsed=max(row["elapsed"] for row in rows),
    )


def _strategy(row: dict[str, Any], config: dict[str, Any]) -> Strategy:
    widths = tuple(row["widths"])
    groups = zip(widths, config["channels"], config["prunable"], strict=True)
    ratios = tuple(1 - width / channels for width, channels, prunable in groups if prunable)
    return Strategy(ratios=ratios, widths=widths, macs=row["macs"], params=row["params"], origin=row["origin"])
