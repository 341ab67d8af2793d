"""`eagleeye search`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from eagleeye_hf.channels.cost import count_cost
from eagleeye_hf.channels.graph import ChannelGraph
from eagleeye_hf.data.splits import open_splits
from eagleeye_hf.evaluation.score import AdaptiveBNScore
from eagleeye_hf.runs.arguments import flag
from eagleeye_hf.runs.config import DataConfig
from eagleeye_hf.runs.models import load_model
from eagleeye_hf.search.config import SearchConfig
from eagleeye_hf.search.result import Candidate, SearchResult
from eagleeye_hf.search.run import run_search
from eagleeye_hf.strategies.budget import Budget
from eagleeye_hf.strategies.files import strategy_to_dict
from eagleeye_hf.tracing.trace import trace_model

SHOWN = 10


@dataclass(frozen=True, kw_only=True)
class Config(DataConfig):
    model: str = field(metadata={"help": "timm name of the trained network"})
    weights: str | None = flag(None, "safetensors file with its weights, instead of those of the Hub")
    dataset: str = flag("ILSVRC/imagenet-1k", "Hub name or local folder of an image classification dataset")
    macs: list[float] = field(
        default_factory=list,
        metadata={"help": "MACs to keep, a fraction or an absolute number; several: several budgets"},
    )
    params: list[float] = field(default_factory=list, metadata={"help": "parameters to keep, likewise"})
    latency_ms: list[float] = field(
        default_factory=list, metadata={"help": "milliseconds of one image on this device, likewise; measured"}
    )
    tolerance: float = flag(0.005, "how far the budget may be missed, as a fraction of the full network")
    divisor: int = flag(1, "widths are multiples of this many channels")
    max_ratio: float = flag(0.7, "largest fraction of channels removed from a group")
    criterion: str = flag("l1", "which channels stay: l1, l2, bn_scale, geometric_median, taylor or random")
    method: str = flag("evolution", "random, evolution, uniform or global")
    sampler: str = flag("projected", "how random strategies meet the budget: projected, or paper (rejection)")
    candidates: int = flag(200, "strategies to score per budget; 0: as many as --minutes allow")
    minutes: float | None = flag(None, "stop after this time")
    compensate: bool = flag(False, "repair the readers of removed channels by least squares before scoring")
    output: str = flag("outputs/search", "folder for the journal search.jsonl and strategy.json")
    json: bool = flag(False, "print JSON instead of a table")

    @property
    def search(self) -> SearchConfig:
        keys = ("tolerance", "divisor", "max_ratio", "method", "sampler", "minutes", "seed")
        bounds: dict[str, Any] = {name: _bound(getattr(self, name)) for name in ("macs", "params", "latency_ms")}
        if not any(value is not None for value in bounds.values()):
            bounds["macs"] = 0.5
        return SearchConfig(**bounds, candidates=self.candidates or None, **{key: getattr(self, key) for key in keys})


def run(config: Config) -> None:
    """Search for the best thin versions of a trained network under one or several budgets.

    A run that was killed goes on when started again with the same command.
    """
    search = config.search
    accelerator = Accelerator()
    model = load_model(config.model, config.weights)
    data = open_splits(config.dataset, like=model, **config.splits)
    model = model.to(accelerator.device).eval()
    graph = trace_model(model)
    score = AdaptiveBNScore(
        model,
        graph,
        data.calibration.cached_batches(),
        data.holdout.cached_batches(),
        criterion=config.criterion,
        compensate=config.compensate,
        seed=config.seed,
    )
    folder = Path(config.output)
    result = run_search(score, graph, search, output=folder, fingerprint=score.fingerprint(), accelerator=accelerator)
    if accelerator.is_main_process:
        write_strategies(graph, result, folder)
        print(json.dumps(to_json(graph, result, folder)) if config.json else format_result(graph, result, folder))
        for note in result.notes:
            print(f"warning: {note}", file=sys.stderr)
    accelerator.wait_for_everyone()


def write_strategies(graph: ChannelGraph, result: SearchResult, folder: Path) -> None:
    """The best strategy of the search, or of each budget by its name."""
    best = [
        {**strategy_to_dict(graph, result.best_of(number).strategy), "budget": str(budget)}
        for number, budget in enumerate(result.budgets)
    ]
    several = {"strategies": {own["budget"].replace(", ", ","): own for own in best}}
    (folder / "strategy.json").write_text(json.dumps(best[0] if len(best) == 1 else several, indent=2))


def to_json(graph: ChannelGraph, result: SearchResult, folder: Path) -> dict:
    """The leaders of each budget, for machines."""
    budgets = [
        {"budget": asdict(budget), "leaders": [_plain(c) for c in result.leaders_of(number)[:SHOWN]]}
        for number, budget in enumerate(result.budgets)
    ]
    full = count_cost(graph, graph.widths)._asdict()
    groups = [group.name for group in graph.groups]
    journal = str(folder / "search.jsonl")
    return {"full": full, "groups": groups, "budgets": budgets, "notes": list(result.notes), "journal": journal}


def format_result(graph: ChannelGraph, result: SearchResult, folder: Path) -> str:
    """A table of the leaders per budget."""
    parts = [_table(graph, budget, result.leaders_of(number)) for number, budget in enumerate(result.budgets)]
    failed = sum(not candidate.scored for candidate in result.candidates)
    text = f"{len(result.candidates)} candidates" + (f", {failed} of them without a score" if failed else "")
    return "\n\n".join(
        ["", *parts, f"{text}; strategy: {folder / 'strategy.json'}, pictures: eagleeye report {folder}"]
    )


def _table(graph: ChannelGraph, budget: Budget, leaders: Sequence[Candidate]) -> str:
    full = count_cost(graph, graph.widths)
    lines = [
        f"leaders under {budget}",
        f"{'':>4}{'index':>7}  {'origin':<10}{'loss':>8}{'top-1':>9}{'MACs':>8}{'params':>8}{'ms':>8}{'images':>8}",
    ]
    for place, candidate in enumerate(leaders[:SHOWN], 1):
        own = candidate.strategy
        milliseconds = f"{candidate.latency_ms:.2f}" if candidate.latency_ms is not None else ""
        lines.append(
            f"{place:>4}{candidate.index:>7}  {own.origin:<10}{candidate.loss:>8.4f}{candidate.top1:>9.2%}"
            f"{own.macs / full.macs:>8.1%}{own.params / full.params:>8.1%}{milliseconds:>8}{candidate.num_images:>8}"
        )
    return "\n".join(lines)


def _plain(candidate: Candidate) -> dict:
    own = candidate.strategy
    row = {"index": candidate.index, "origin": own.origin, "widths": list(own.widths)}
    row |= {"macs": own.macs, "params": own.params, "latency_ms": candidate.latency_ms}
    return row | {"loss": candidate.loss, "top1": candidate.top1, "num_images": candidate.num_images}


def _bound(values: list[float]) -> float | list[float] | None:
    return values[0] if len(values) == 1 else values or None
