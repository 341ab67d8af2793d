"""`eagleeye inspect`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from eagleeye_hf.channels.cost import count_cost
from eagleeye_hf.channels.graph import ChannelGraph
from eagleeye_hf.channels.summary import BlockSummary, GroupSummary, summarise_blocks, summarise_groups
from eagleeye_hf.commands.printing import PrintConfig
from eagleeye_hf.configs import check_fields
from eagleeye_hf.errors import EagleEyeError
from eagleeye_hf.runs.config import NetworkConfig
from eagleeye_hf.runtimes.config import LatencyConfig
from eagleeye_hf.strategies.files import read_strategy
from eagleeye_hf.strategies.strategy import Strategy

if TYPE_CHECKING:
    from torch import nn

    from eagleeye_hf.runtimes.runtime import OperatorTime, Place

PROFILE_ROUNDS, SLOWEST, NAMED = 20, 12, 4


@dataclass(frozen=True, kw_only=True)
class Config:
    network: NetworkConfig
    strategy: str | None = None
    """JSON file (or FILE#NAME) with widths or ratios to show."""
    plot: str | None = None
    """Draw the groups into this new PNG file (needs the extra `plots`)."""
    profile: bool = False
    """Show what takes the milliseconds: time per kind of operator, and the slowest ones, in the runtime."""
    measuring: LatencyConfig = LatencyConfig()
    printing: PrintConfig = PrintConfig()

    def __post_init__(self) -> None:
        check_fields(self)
        if self.plot and Path(self.plot).exists():
            raise EagleEyeError(f"`plot={self.plot}` is there already; move it away, or give another name")
        if self.plot and not Path(self.plot).absolute().parent.is_dir():
            raise EagleEyeError(f"`plot={self.plot}` can't be written: there is no folder {Path(self.plot).parent}")


def run(config: Config) -> None:
    """Show the channel groups of a network: what can go, what it costs, what stays and why."""
    from eagleeye_hf.runs.models import load_model, open_model, trace_kept
    from eagleeye_hf.runtimes.runtime import find_runtime

    name, weights = config.network.model, config.network.weights
    inputs = config.network.inputs
    model, kept = (load_model(name, weights, inputs), {}) if weights else open_model(name, inputs)
    graph, strategy = trace_kept(model, kept, f"`model={name}`")
    size = graph.input_size
    if config.strategy:
        strategy = read_strategy(graph, config.strategy)
    rows = summarise_groups(graph, strategy.widths, strategy.removed_blocks)
    blocks = summarise_blocks(graph, strategy.removed_blocks)
    operators = profile_network(model, graph, strategy, config.measuring) if config.profile else []
    if config.printing.json:
        full, thin = count_cost(graph, graph.widths)._asdict(), count_cost(graph, strategy)._asdict()
        groups, told = [asdict(row) for row in rows], [asdict(block) for block in blocks]
        profile = {"profile": [asdict(operator) for operator in operators]} if config.profile else {}
        print(
            json.dumps(
                {"model": name, "input_size": size, "full": full, "kept": thin, "groups": groups, "blocks": told}
                | profile
            )
        )
    else:
        print(format_groups(graph, rows), format_blocks(blocks), format_costs(graph, strategy), sep="\n\n")
        if config.profile:
            print(f"\n{format_profile(operators, find_runtime(config.measuring).place)}")
    if config.plot:
        draw_groups(graph, strategy, config.plot)


def format_groups(graph: ChannelGraph, rows: Sequence[GroupSummary]) -> str:
    """A table of the prunable groups, then what is pinned."""
    thinner = tuple(row.width for row in rows) != graph.widths
    wide = max([len(row.name) for row in rows if not row.reason] + [5])
    title = f"{'kept':>7}" if thinner else ""
    lines = [f"{'group':{wide}} {'channels':>9}{title}{'step':>6}{'MACs':>11}{'parameters':>13}{'tensors':>9}"]
    for row in rows:
        if not row.reason:
            kept = f"{row.width:>7}" if thinner else ""
            lines.append(
                f"{row.name:{wide}} {row.channels:>9}{kept}{row.step:>6}{row.macs / 1e6:>9.2f} M"
                f"{row.params / 1e3:>11.1f} k{len(row.members):>9}"
            )
    pinned = [row for row in rows if row.reason]
    if pinned:
        lines.append("\npinned")
        lines += [f"  {row.name} ({row.channels} channels): {row.reason}" for row in pinned]
    lines.append(f"\n{len(rows) - len(pinned)} of {len(rows)} groups can be pruned")
    lines.append("  MACs, parameters: what goes when that group alone shrinks to its step; groups share layers")
    return "\n".join(lines)


def format_blocks(blocks: Sequence[BlockSummary]) -> str:
    """A table of the blocks that can go as a whole, then those that can't, by why."""
    can = [block for block in blocks if not block.reason]
    if not can:
        return "no block can go as a whole" + "".join(f"\n{line}" for line in _refused(blocks))
    wide = max(len(block.name) for block in can)
    lines = [f"{'block':{max(wide, 5)}} {'MACs':>11}{'parameters':>13}"]
    lines += [
        f"{block.name:{max(wide, 5)}} {block.macs / 1e6:>9.2f} M{block.params / 1e3:>11.1f} k"
        + ("  removed" if block.removed else "")
        for block in can
    ]
    return "\n".join([*lines, f"\n{len(can)} of {len(blocks)} blocks can go as a whole", *_refused(blocks)])


def _refused(blocks: Sequence[BlockSummary]) -> list[str]:
    reasons: dict[str, list[str]] = {}
    for block in blocks:
        if block.reason:
            reasons.setdefault(block.reason, []).append(block.name)
    return [
        f"  {', '.join(names[:NAMED])}{f' and {len(names) - NAMED} others' if len(names) > NAMED else ''}: {reason}"
        for reason, names in reasons.items()
    ]


def format_costs(graph: ChannelGraph, strategy: Strategy) -> str:
    """Totals, of the full network and of what is kept."""
    full, thin = count_cost(graph, graph.widths), count_cost(graph, strategy)
    lines = [f"{full.macs / 1e6:,.1f} M MACs, {full.params / 1e6:,.3f} M parameters, input {graph.input_size}"]
    if thin != full:
        lines.append(
            f"kept: {thin.macs / 1e6:,.1f} M MACs ({thin.macs / full.macs:.1%}), "
            f"{thin.params / 1e6:,.3f} M parameters ({thin.params / full.params:.1%})"
        )
    return "\n".join(lines)


def profile_network(
    model: nn.Module, graph: ChannelGraph, strategy: Strategy, measuring: LatencyConfig
) -> list[OperatorTime]:
    """Milliseconds of each operator under a strategy."""
    from eagleeye_hf.networks.running import evaluation_mode
    from eagleeye_hf.pruning.importance import Importance
    from eagleeye_hf.runtimes.latency import draw_images
    from eagleeye_hf.runtimes.runtime import find_runtime

    runtime = find_runtime(measuring)
    keep = Importance(model, graph).choose(strategy.widths)
    with evaluation_mode(model):
        load = runtime.load_thin(model, graph, draw_images(runtime, graph.input_size))
        return load(keep, strategy.removed_blocks).profile(PROFILE_ROUNDS)


def format_profile(operators: Sequence[OperatorTime], place: Place) -> str:
    """Two tables: milliseconds per kind of operator, and of the slowest operators."""
    total = sum(operator.milliseconds for operator in operators)
    kinds: dict[str, list[float]] = {}
    for operator in operators:
        kinds.setdefault(operator.kind, []).append(operator.milliseconds)
    lines = [f"{total:.3g} ms in {place}, {place.images}", "", f"{'kind':<28}{'number':>8}{'ms':>9}"]
    for kind, times in sorted(kinds.items(), key=lambda item: -sum(item[1])):
        lines.append(f"{kind:<28}{len(times):>8}{sum(times):>9.3f}{sum(times) / total:>7.0%}")
    lines += ["", f"{'slowest operators':<48}{'ms':>9}"]
    for operator in sorted(operators, key=lambda operator: -operator.milliseconds)[:SLOWEST]:
        name = operator.weight.removesuffix(".weight") or operator.name
        lines.append(f"{name:<48}{operator.milliseconds:>9.3f}{operator.milliseconds / total:>7.0%}")
    return "\n".join(lines)


def draw_groups(graph: ChannelGraph, strategy: Strategy, path: str) -> None:
    try:
        from eagleeye_hf.reports.result import draw_graph
    except ImportError as error:
        raise EagleEyeError("`plot` needs matplotlib; install it with: pip install eagleeye-hf[plots]") from error
    try:
        draw_graph(graph, strategy, Path(path))
    except (OSError, ValueError) as error:
        raise EagleEyeError(f"`plot={path}` can't be written: {error}") from error
