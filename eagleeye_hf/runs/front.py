"""What a search offers to choose from: accuracy against measured milliseconds, in every runtime at hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from eagleeye_hf.channels.cost import count_cost
from eagleeye_hf.evaluation.score import AdaptiveBNScore
from eagleeye_hf.runs.measuring import deployments, left_out, warn_noisy
from eagleeye_hf.runtimes.config import LatencyConfig
from eagleeye_hf.runtimes.latency import Latency
from eagleeye_hf.runtimes.timing import StrategyTimer
from eagleeye_hf.search.result import SearchResult
from eagleeye_hf.strategies.strategy import Strategy

SINGLES = {"uniform": "uniform", "depth": "fewer blocks", "size": "smaller images"}
"""What meets a budget by one dimension alone, and how tables call it."""


@dataclass(frozen=True, kw_only=True)
class FrontRow:
    """A network, what it costs and what it gives."""

    name: str
    kind: str
    """`full`, `chosen`, `uniform` (one dimension alone), or `given` for one that somebody brought."""
    macs: int
    params: int
    accuracy: float | None = None
    """What the table reports, as top-1; None where it was not measured."""
    milliseconds: Mapping[str, float] = field(default_factory=dict)
    """By the place where they were measured."""
    file_bytes: int | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Front:
    """Rows of a table and points of a picture; the full network comes first."""

    rows: tuple[FrontRow, ...]
    reports: str
    """What accuracy is, as top-1."""
    images: str
    """On which images, in words."""

    @property
    def places(self) -> list[str]:
        return list(dict.fromkeys(place for row in self.rows for place in row.milliseconds))

    def to_dict(self) -> dict[str, Any]:
        return {"reports": self.reports, "images": self.images, "rows": [row.to_dict() for row in self.rows]}


def search_front(score: AdaptiveBNScore, result: SearchResult, measuring: LatencyConfig) -> Front:
    """The full network, and of each budget the choice and the uniform strategy, scored on all holdout images."""
    named = [("full network", "full", Strategy(score.graph.widths))]
    for number, budget in enumerate(result.budgets):
        best = result.best_of(number).strategy
        named.append((f"{budget}", "chosen", best))
        singles = [c for c in result.candidates if c.budget == number and c.origin in SINGLES]
        named += [(f"{budget}, {SINGLES[c.origin]}", "uniform", c.strategy) for c in singles if c.strategy != best]
    times = measure_strategies(score, [strategy for *_, strategy in named], measuring)
    rows = []
    for place, (name, kind, strategy) in enumerate(named):
        cost = count_cost(score.graph, strategy)
        known = result.full.unchanged if kind == "full" and result.full else score(strategy)
        rows.append(
            FrontRow(
                name=name,
                kind=kind,
                macs=int(cost.macs),
                params=int(cost.params),
                accuracy=known.reported,
                milliseconds={str(several[place].place): several[place].milliseconds for several in times},
            )
        )
    images = f"{known.num_images:,} holdout images, not fine-tuned"
    return Front(rows=tuple(rows), reports=result.reports, images=images)


def measure_strategies(
    score: AdaptiveBNScore, strategies: Sequence[Strategy], measuring: LatencyConfig
) -> list[list[Latency]]:
    """Per runtime, milliseconds of each strategy beside the full network; the runtime asked for first."""
    found = []
    for runtime in deployments(measuring, score.device):
        with left_out(runtime):
            timer = StrategyTimer(score.model, score.graph, score.builder.importance, runtime)
            found.append(timer.measure(strategies))
    warn_noisy(latency for several in found for latency in several)
    return found


def format_front(front: Front) -> str:
    """The table for a terminal, the first runtime's milliseconds also as a part of the full network's."""
    full = front.rows[0]
    sized = any(row.file_bytes for row in front.rows)
    wide = max(len(row.name) for row in front.rows) + 2
    heads = [f"{front.reports:>8}", f"{'MACs':>10}", f"{'parameters':>12}"] + ([f"{'file':>10}"] if sized else [])
    heads += [f"{_short(place):>18}" for place in front.places]
    lines = [" " * wide + "".join(heads)]
    for row in front.rows:
        cells = [f"{row.accuracy:>8.2%}" if row.accuracy is not None else f"{'-':>8}"]
        cells += [f"{row.macs / 1e6:>8,.1f} M", f"{row.params / 1e6:>10,.3f} M"]
        cells += [f"{(row.file_bytes or 0) / 1e6:>7,.2f} MB"] if sized else []
        for place in front.places:
            took, whole = row.milliseconds.get(place), full.milliseconds.get(place)
            part = f" ({took / whole:>4.0%})" if took and whole else ""
            cells.append(f"{f'{took:.3g} ms{part}' if took else '-':>18}")
        lines.append(f"{row.name:<{wide}}" + "".join(cells))
    return "\n".join(
        [*lines, "", f"{front.reports} on {front.images}; milliseconds are measured: {'; '.join(front.places)}"]
    )


def _short(place: str) -> str:
    """The runtime alone, and what is special about it."""
    runtime, _, rest = place.partition(" on ")
    return runtime + (" int8" if "int8" in rest else "")
