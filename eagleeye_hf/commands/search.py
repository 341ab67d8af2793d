"""`eagleeye search`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eagleeye_hf.channels.cost import count_cost
from eagleeye_hf.channels.graph import ChannelGraph
from eagleeye_hf.commands.printing import PrintConfig
from eagleeye_hf.configs import check_fields
from eagleeye_hf.data.config import DatasetConfig, HeldOutConfig
from eagleeye_hf.evaluation.config import ScoringConfig
from eagleeye_hf.pruning.config import ImportanceConfig
from eagleeye_hf.runs.config import NetworkConfig, Seed, check_held_out, split_arguments
from eagleeye_hf.runtimes.config import LatencyConfig
from eagleeye_hf.search.config import SearchConfig
from eagleeye_hf.strategies.files import describe_strategy
from eagleeye_hf.strategies.space import DIMENSIONS
from eagleeye_hf.telling import warn

if TYPE_CHECKING:
    from eagleeye_hf.runs.folder import RunFolder
    from eagleeye_hf.runs.front import Front
    from eagleeye_hf.search.candidate import Candidate
    from eagleeye_hf.search.result import SearchResult

SHOWN = 10
FRONT, FRONT_PICTURE = "front.json", "front.png"


@dataclass(frozen=True, kw_only=True)
class Config:
    network: NetworkConfig
    data: DatasetConfig = DatasetConfig()
    held_out: HeldOutConfig = HeldOutConfig()
    search: SearchConfig = SearchConfig(dimensions=DIMENSIONS)
    scoring: ScoringConfig = ScoringConfig()
    importance: ImportanceConfig = ImportanceConfig()
    measuring: LatencyConfig = LatencyConfig()
    printing: PrintConfig = PrintConfig()
    seed: Seed = 0
    """Of everything random."""
    output: str = "outputs/search"
    """Folder for the journal search.jsonl and strategy.json."""

    def __post_init__(self) -> None:
        check_fields(self)


def run(config: Config) -> None:
    """Search for the best thin versions of a trained network under one or several budgets.

    A run that was killed goes on when started again with the same command.
    """
    from accelerate import Accelerator

    from eagleeye_hf.data.splits import open_splits
    from eagleeye_hf.runs.arguments import RUN_FILE, settings_text
    from eagleeye_hf.runs.compress import teach
    from eagleeye_hf.runs.dimensions import trace_network
    from eagleeye_hf.runs.folder import check_output, open_run
    from eagleeye_hf.runs.front import format_front, search_front
    from eagleeye_hf.runs.models import load_model
    from eagleeye_hf.runs.scoring import make_score
    from eagleeye_hf.runtimes.runtime import find_runtime
    from eagleeye_hf.search.run import check_reach, run_search

    check_held_out(config.held_out)
    find_runtime(config.measuring)  # refuses one that is not installed
    check_output(config.output, "search")
    accelerator = Accelerator()
    model = load_model(config.network.model, config.network.weights, config.network.inputs)
    graph = trace_network(model, config.search)
    check_reach(graph, config.search)
    arguments = split_arguments(config.data, config.held_out, seed=config.seed)
    data = open_splits(like=model, **arguments, needs_test=False, needs_labels=False, accelerator=accelerator)
    model = model.to(accelerator.device).eval()
    if not data.labelled:
        data = teach(data, model)
    score = make_score(model, graph, data, config, accelerator)
    folder = open_run(config.output, "search")
    if accelerator.is_main_process:
        folder.write(RUN_FILE, settings_text(config))
        folder.claim("search.jsonl")
    result = run_search(
        score,
        graph,
        config.search,
        seed=config.seed,
        output=folder.path,
        fingerprint=score.fingerprint(),
        accelerator=accelerator,
    )
    folder = open_run(config.output, "search")
    if accelerator.is_main_process:
        folder.write("strategy.json", describe_best(graph, result, score.criterion))
        front = search_front(score, result, config.measuring)
        folder.write(FRONT, json.dumps(front.to_dict(), indent=1))
        picture = draw(front, folder)
        if config.printing.json:
            print(json.dumps(to_json(graph, result, folder.path) | {"front": front.to_dict()}))
        else:
            print(format_result(graph, result, folder.path), format_front(front), *picture, sep="\n\n")
        for note in [*result.notes, *slower_rows(front)]:
            warn(note)
    accelerator.wait_for_everyone()


def draw(front: Front, folder: RunFolder) -> list[str]:
    """The picture's path, where matplotlib is installed."""
    try:
        from eagleeye_hf.reports.front import draw_front
    except ImportError:
        return []
    folder.claim(FRONT_PICTURE)
    return [f"picture: {draw_front(front.to_dict(), folder.path / FRONT_PICTURE)}"]


def slower_rows(front: Front) -> list[str]:
    """Choices that are slower than the full network in the runtime that was asked for."""
    if not front.places:
        return []
    place, full = front.places[0], front.rows[0]
    return [
        f"{row.name} is slower than the full network in {place}: {row.milliseconds[place]:.3g} ms where that takes "
        f"{full.milliseconds[place]:.3g}; ask for milliseconds (`--latency`), or for wider steps (`--divisor 16`)"
        for row in front.rows[1:]
        if row.kind == "chosen" and row.milliseconds.get(place, 0.0) > full.milliseconds.get(place, 0.0)
    ]


def describe_best(graph: ChannelGraph, result: SearchResult, criterion: str) -> str:
    """A file with the best strategy of the search, or of each budget by its name."""
    best = []
    for number, budget in enumerate(result.budgets):
        found = result.best_of(number)
        told = describe_strategy(graph, found.strategy, found.origin, criterion)
        best.append({**told, "budget": str(budget)})
    several = {"strategies": {one["budget"].replace(", ", ","): one for one in best}}
    return json.dumps(best[0] if len(best) == 1 else several, indent=2)


def to_json(graph: ChannelGraph, result: SearchResult, folder: Path) -> dict[str, Any]:
    """The leaders of each budget, for machines."""
    budgets = [
        {"budget": asdict(budget), "leaders": [_plain(c) for c in result.leaders_of(number)[:SHOWN]]}
        for number, budget in enumerate(result.budgets)
    ]
    full = count_cost(graph, graph.widths)._asdict()
    groups = [group.name for group in graph.groups]
    found = {"full": full, "groups": groups, "budgets": budgets, "notes": list(result.notes)}
    return found | {"journal": str(folder / "search.jsonl")}


def format_result(graph: ChannelGraph, result: SearchResult, folder: Path) -> str:
    """A table of the leaders per budget."""
    parts = [
        f"leaders under {budget}\n{_table(graph, result.leaders_of(number), result.reports)}"
        for number, budget in enumerate(result.budgets)
    ]
    failed = sum(not candidate.scored for candidate in result.candidates)
    text = f"{len(result.candidates)} candidates" + (f", {failed} of them without a score" if failed else "")
    return "\n\n".join(
        ["", *parts, f"{text}; strategy: {folder / 'strategy.json'}, pictures: eagleeye report {folder}"]
    )


def _table(graph: ChannelGraph, leaders: Sequence[Candidate], reports: str) -> str:
    full = count_cost(graph, graph.widths)
    framed = any(c.strategy.removed_blocks or c.strategy.image_size for c in leaders)
    lines = [
        f"{'':>4}{'index':>7}  {'origin':<10}{'loss':>8}{reports:>11}{'MACs':>8}{'params':>8}{'ms':>8}{'images':>8}"
        + (f"{'blocks gone':>13}{'px':>6}" if framed else "")
    ]
    for place, candidate in enumerate(leaders[:SHOWN], 1):
        cost, score = candidate.cost, candidate.score
        assert score is not None, "leaders have scores"
        milliseconds = f"{candidate.milliseconds:.2f}" if candidate.milliseconds is not None else ""
        lines.append(
            f"{place:>4}{candidate.index:>7}  {candidate.origin:<10}{score.loss:>8.4f}{score.reported:>9.2%}"
            f"{cost.macs / full.macs:>8.1%}{cost.params / full.params:>8.1%}{milliseconds:>8}{score.num_images:>8}"
            + (f"{len(candidate.strategy.removed_blocks):>13}{_pixels(graph, candidate):>6}" if framed else "")
        )
    return "\n".join(lines)


def _pixels(graph: ChannelGraph, candidate: Candidate) -> int:
    return candidate.strategy.image_size or graph.image_size


def _plain(candidate: Candidate) -> dict:
    score = candidate.score.to_dict() if candidate.score else {}
    return candidate.to_dict() | score | {"latency": candidate.latency and candidate.latency.to_dict()}
