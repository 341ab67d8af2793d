"""`eagleeye inspect`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import timm
from torch import nn

from eagleeye_hf.channels.cost import count_cost
from eagleeye_hf.channels.graph import ChannelGraph
from eagleeye_hf.channels.summary import GroupSummary, summarise_groups
from eagleeye_hf.errors import EagleEyeError
from eagleeye_hf.publishing.checkpoint import from_pretrained
from eagleeye_hf.publishing.config import base_args, read_config
from eagleeye_hf.publishing.download import download_config
from eagleeye_hf.runs.arguments import flag
from eagleeye_hf.runs.models import check_name
from eagleeye_hf.strategies.files import read_strategy
from eagleeye_hf.tracing.trace import resolve_input_size, trace_model


@dataclass(frozen=True, kw_only=True)
class Config:
    model: str = field(metadata={"help": "timm name, hf-hub:USER/REPO or checkpoint folder"})
    image_size: int | None = flag(None, "height and width of an image in pixels, instead of the model's own")
    strategy: str | None = flag(None, "JSON file (or FILE#NAME) with widths or ratios to show")
    json: bool = flag(False, "print JSON")
    plot: str | None = flag(None, "draw the groups into this PNG file (needs the extra `plots`)")


def run(config: Config) -> None:
    """Show the channel groups of a network: what can go, what it costs, what stays and why."""
    model, kept = open_model(config.model)
    channels, *pixels = resolve_input_size(model, None)
    size = (channels, *([config.image_size] * 2 if config.image_size else pixels))
    graph = trace_model(model, size)
    widths = [kept.get(group.name, group.channels) for group in graph.groups]
    if config.strategy:
        widths = list(read_strategy(graph, config.strategy).widths)
    rows = summarise_groups(graph, widths)
    if config.json:
        full, thin = count_cost(graph, graph.widths)._asdict(), count_cost(graph, widths)._asdict()
        groups = [asdict(row) for row in rows]
        print(json.dumps({"model": config.model, "input_size": size, "full": full, "kept": thin, "groups": groups}))
    else:
        print(format_groups(graph, rows))
    if config.plot:
        draw_groups(graph, widths, config.plot)


def open_model(name: str) -> tuple[nn.Module, dict[str, int]]:
    """A network to look at, weights not needed; for a checkpoint its base, with the widths that it keeps."""
    folder = find_checkpoint(name)
    config = read_config(folder) if folder else {}
    widths = config.get("eagleeye", {}).get("widths")
    if widths:
        arguments = config["model_args"]
        shape = {"num_classes": config["num_classes"], "in_chans": arguments.get("in_chans", 3)}
        shape["pretrained_cfg_overlay"] = config["pretrained_cfg"]  # the size of an image too
        return timm.create_model(arguments["base"], **shape, **base_args(arguments)), widths
    if Path(name).is_dir():
        return from_pretrained(name), {}
    check_name(name)
    try:
        return timm.create_model(name), {}
    except Exception as error:  # timm and the Hub raise many kinds
        raise EagleEyeError(
            f"`model={name}` can't be opened ({type(error).__name__}: {str(error).splitlines()[0]})"
        ) from error


def find_checkpoint(name: str) -> Path | None:
    """Where the `config.json` of a checkpoint of ours lies: a folder, or the Hub's cache; None for other networks."""
    if Path(name).is_dir():
        return Path(name)
    if not name.startswith("hf-hub:"):
        return None
    repo, _, revision = name.removeprefix("hf-hub:").partition("@")
    try:
        return download_config(repo, revision or None)
    except EagleEyeError:  # one of timm's own, or none, which opening it tells
        return None


def format_groups(graph: ChannelGraph, rows: Sequence[GroupSummary]) -> str:
    """A table of the prunable groups, then what is pinned, then totals."""
    widths = [row.width for row in rows]
    thinner = tuple(widths) != graph.widths
    full, thin = count_cost(graph, graph.widths), count_cost(graph, widths)
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
    lines.append(f"{full.macs / 1e6:,.1f} M MACs, {full.params / 1e6:,.3f} M parameters, input {graph.input_size}")
    if thinner:
        lines.append(
            f"kept: {thin.macs / 1e6:,.1f} M MACs ({thin.macs / full.macs:.1%}), "
            f"{thin.params / 1e6:,.3f} M parameters ({thin.params / full.params:.1%})"
        )
    return "\n".join(lines)


def draw_groups(graph: ChannelGraph, widths: Sequence[int], path: str) -> None:
    try:
        from eagleeye_hf.reports.result import draw_graph
    except ImportError as error:
        raise EagleEyeError("`plot` needs matplotlib; install it with: pip install eagleeye-hf[plots]") from error
    try:
        draw_graph(graph, widths, Path(path))
    except (OSError, ValueError) as error:
        raise EagleEyeError(f"`plot={path}` can't be written: {error}") from error
