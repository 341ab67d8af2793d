"""Strategies in files: our own, and those that EagleEye's authors released."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eagleeye_hf.channels.cost import count_cost
from eagleeye_hf.channels.graph import ChannelGraph
from eagleeye_hf.errors import EagleEyeError
from eagleeye_hf.strategies.strategy import Strategy, check_strategy, named_widths, widths_from_ratios
from eagleeye_hf.telling import warn


def read_strategy(graph: ChannelGraph, path: str, divisor: int = 1) -> Strategy:
    """Read a strategy from a JSON file.

    The file holds `{"widths": {group name: channels kept}}` (as `strategy.json` of a run), or
    `{"ratios": [...], "layers": [...]}`: the fraction removed per layer, layers matched by the name of any of their
    weights, or by order where the names belong to another implementation. A file with several strategies holds them by
    name under `strategies`; choose one with `FILE#NAME`.

    Raises:
        EagleEyeError: no such file or strategy, or it does not fit the graph.
    """
    data = _read_entry(path)
    return strategy_from(graph, data, f"`strategy={path}`", divisor)


def strategy_from(graph: ChannelGraph, data: Mapping[str, Any], place: str, divisor: int = 1) -> Strategy:
    """A strategy from what a file holds of one.

    Args:
        place: what to call the file in messages.
    Raises:
        EagleEyeError: it does not fit the graph.
    """
    if isinstance(data.get("widths"), dict):
        unknown = set(data["widths"]) - {group.name for group in graph.groups}
        if unknown:
            raise EagleEyeError(f"{place} names {sorted(unknown)[0]!r}, which is no channel group of this model")
        widths = [data["widths"].get(group.name, group.channels) for group in graph.groups]
    elif isinstance(data.get("ratios"), list):
        widths, data = widths_from_ratios(graph, _ordered(graph, data, place), divisor).tolist(), {}
    else:
        raise EagleEyeError(f"{place} has neither `widths` nor `ratios`")
    return check_strategy(graph, Strategy.from_dict({**data, "widths": widths}))


def read_image_size(path: str) -> int | None:
    """The image size of a strategy in a file; None where it is the network's own.

    Raises:
        EagleEyeError: as `read_strategy`.
    """
    size = _read_entry(path).get("image_size")
    return size if isinstance(size, int) else None


def warn_of_criterion(path: str, criterion: str) -> None:
    """Say where a strategy in a file was found with other channels than it will get."""
    told = _read_entry(path).get("criterion")
    if told and told != criterion:
        warn(
            f"`strategy={path}` was found with channels chosen by {told}, and gets those by {criterion}, which is "
            f"another network; for the same give `--criterion {told}`"
        )


def read_origin(path: str) -> dict[str, str]:
    """What a strategy file tells of how the strategy was found, and under which budget."""
    data = _read_entry(path)
    return {key: str(data[key]) for key in ("origin", "budget") if key in data}


def _read_entry(path: str) -> dict[str, Any]:
    """One strategy of `FILE` or `FILE#NAME`."""
    file, _, name = path.partition("#")
    try:
        data = json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise EagleEyeError(
            f"`strategy={path}` can't be read ({why}); give a JSON file with widths or ratios, as a search writes"
        ) from error
    if isinstance(data, dict) and isinstance(data.get("strategies"), dict):
        known = data["strategies"]
        if name not in known:
            raise EagleEyeError(
                f"`strategy={path}` holds several; choose one, for instance {file}#{next(iter(known), 'NAME')} "
                f"(it has {', '.join(known)})"
            )
        data = known[name]
    elif name:
        raise EagleEyeError(
            f"`strategy={path}`: {file} holds one strategy, and none of the name {name}; leave #{name} out"
        )
    if not isinstance(data, dict):
        raise EagleEyeError(f"`strategy={path}` has neither `widths` nor `ratios`")
    return data


def _ordered(graph: ChannelGraph, data: Mapping[str, Any], place: str) -> list[float]:
    """Ratios in the graph's order, matched by the names of weights where those are this model's."""
    ratios, layers = data["ratios"], data.get("layers") or []
    if not all(type(ratio) in (int, float) for ratio in ratios) or not isinstance(layers, list):
        raise EagleEyeError(f"{place}: `ratios` are numbers, and `layers` a list of names")
    named = {name for entry in layers for name in (entry if isinstance(entry, list) else [entry])}
    known = {member.tensor for group in graph.groups for member in group.members}
    if named & known and (others := sorted(map(str, named - known))):  # where none is known, the order tells
        raise EagleEyeError(
            f"{place} is of another network: {others[0]} is no weight of this one ({len(others)} of its "
            f"{len(named)} `layers` are not)"
        )
    if layers and len(layers) != len(ratios):
        raise EagleEyeError(f"{place}: {len(ratios)} `ratios` for {len(layers)} `layers`; give one each")
    by_tensor = {
        name: ratio
        for entry, ratio in zip(layers, ratios, strict=False)
        for name in (entry if isinstance(entry, list) else [entry])
    }
    matched = [
        next((by_tensor[m.tensor] for m in group.members if m.dim == 0 and m.tensor in by_tensor), None)
        for group in graph.prunable
    ]
    return ratios if None in matched else matched  # type: ignore[return-value]


def describe_strategy(graph: ChannelGraph, strategy: Strategy, origin: str, criterion: str) -> dict[str, Any]:
    """What `strategy.json` of a run holds: widths by the names of their groups, what the network costs, and by which
    criterion channels were chosen when it was found."""
    return {
        **strategy.to_dict(),
        "widths": named_widths(graph, strategy),
        **count_cost(graph, strategy)._asdict(),
        "origin": origin,
        "criterion": criterion,
    }
