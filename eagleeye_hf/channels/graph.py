"""The channel graph: which channels must be removed together, and where they lie. It holds no torch model."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from eagleeye_hf.errors import EagleEyeError

FORMAT = 2


class Member(NamedTuple):
    """One tensor dimension along which a group's channels lie."""

    tensor: str
    """Key of the tensor, as in `state_dict` (buffers that are not saved have their dotted name)."""
    dim: int
    index: np.ndarray  # type: ignore[assignment]  # hides a method of tuples
    """Shape `(channels, k)`: the places of channel `c` along `dim` are `index[c]`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ChannelGroup:
    """Tensor dimensions that lose the same channels together."""

    name: str
    """Module name of the first layer that produces these channels."""
    units: np.ndarray
    """Shape `(num_units, step)`: each row lists channels that are kept or removed together."""
    members: tuple[Member, ...]
    reason: str = ""
    """Why the group can't be pruned; empty for a prunable one."""

    @property
    def channels(self) -> int:
        return int(self.units.size)

    @property
    def step(self) -> int:
        """Channels that must go together; a width is a multiple of it."""
        return int(self.units.shape[1])

    @property
    def prunable(self) -> bool:
        return not self.reason


@dataclass(frozen=True, kw_only=True, eq=False)
class SizeAttribute:
    """A number of channels that the model's Python keeps for itself, such as `width` or a split size."""

    module: str
    path: tuple[str | int, ...]
    """Attribute name, then list indices or dict keys."""
    length: int
    """Its value in the full model."""
    parts: tuple[tuple[int, np.ndarray], ...]
    """(group number, pairs of shape `(n, 2)`: a channel of it, its place among the counted ones)."""


@dataclass(frozen=True)
class Block:
    """A residual branch that can go as a whole, its module giving what it is given, or that can't."""

    name: str
    """Path of the module, in whose place `nn.Identity` comes."""
    zeroed: frozenset[str] = frozenset()
    """Parameters at the end of the branch: where they are zero, the full network computes what it does without it."""
    groups: tuple[int, ...] = ()
    """Numbers of the channel groups that go with it."""
    reason: str = ""
    """Why it can't go; empty for one that can."""

    @property
    def removable(self) -> bool:
        return not self.reason


Terms = tuple[tuple[int, tuple[int, ...], int], ...]
"""(factor, forms to multiply, number of the block that it goes with or -1) per term."""


@dataclass(frozen=True, kw_only=True, eq=False)
class CostModel:
    """Costs as sums of products of linear forms of the groups' unit counts, all integers."""

    constants: np.ndarray
    """Shape `(num_forms,)`."""
    coefficients: np.ndarray
    """Shape `(num_groups, num_forms)`; form f of unit counts u is `constants[f] + u @ coefficients[:, f]`."""
    macs: Terms
    """Multiply-accumulates of one image."""
    params: Terms
    macs_at: tuple[tuple[int, tuple[int, ...]], ...] = ()
    """(image size, factor per term of `macs`) for other sizes of the image than that of the trace."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ChannelGraph:
    """Every channel group of a network, in the order of execution, and every block."""

    groups: tuple[ChannelGroup, ...]
    blocks: tuple[Block, ...]
    attributes: tuple[SizeAttribute, ...]
    cost: CostModel
    input_size: tuple[int, int, int]

    @property
    def prunable(self) -> tuple[ChannelGroup, ...]:
        return tuple(group for group in self.groups if group.prunable)

    @cached_property
    def removable(self) -> tuple[Block, ...]:
        return tuple(block for block in self.blocks if block.removable)

    @property
    def image_size(self) -> int:
        """Pixels of the square image for which the network was traced (its height)."""
        return self.input_size[1]

    @property
    def image_sizes(self) -> tuple[int, ...]:
        """Those at which the network's cost is known, ascending."""
        return tuple(sorted({self.image_size, *(size for size, _ in self.cost.macs_at)}))

    def gone_groups(self, removed_blocks: Iterable[str]) -> set[int]:
        """Numbers of the groups that go with these blocks."""
        removed = set(removed_blocks)
        return {number for block in self.blocks if block.name in removed for number in block.groups}

    @cached_property
    def widths(self) -> tuple[int, ...]:
        """The full model's widths, one per group."""
        return tuple(group.channels for group in self.groups)

    @cached_property
    def steps(self) -> np.ndarray:
        return np.array([group.step for group in self.groups], dtype=np.int64)

    def to_json(self) -> str:
        return json.dumps(
            {
                "format": FORMAT,
                "input_size": self.input_size,
                "groups": [
                    {
                        "name": group.name,
                        "reason": group.reason,
                        "units": _pack(group.units),
                        "members": [[m.tensor, m.dim, _pack(m.index)] for m in group.members],
                    }
                    for group in self.groups
                ],
                "attributes": [
                    [a.module, list(a.path), a.length, [[g, _pack(index)] for g, index in a.parts]]
                    for a in self.attributes
                ],
                "blocks": [[b.name, sorted(b.zeroed), b.groups, b.reason] for b in self.blocks],
                "cost": {
                    "constants": self.cost.constants.tolist(),
                    "coefficients": self.cost.coefficients.tolist(),
                    "macs": self.cost.macs,
                    "params": self.cost.params,
                    "macs_at": self.cost.macs_at,
                },
            }
        )

    @staticmethod
    def from_json(text: str) -> ChannelGraph:
        """Rebuild a graph from `to_json`.

        Raises:
            EagleEyeError: the text is not a channel graph of this format.
        """
        try:
            data = json.loads(text)
            if data["format"] != FORMAT:
                raise ValueError(f"format {data['format']}, not {FORMAT}")
            cost = data["cost"]
            num_groups = len(data["groups"])
            return ChannelGraph(
                input_size=tuple(data["input_size"]),
                groups=tuple(
                    ChannelGroup(
                        name=g["name"],
                        reason=g["reason"],
                        units=_unpack(g["units"]),
                        members=tuple(
                            Member(tensor=tensor, dim=dim, index=_unpack(index)) for tensor, dim, index in g["members"]
                        ),
                    )
                    for g in data["groups"]
                ),
                attributes=tuple(
                    SizeAttribute(
                        module=module,
                        path=tuple(path),
                        length=length,
                        parts=tuple((g, _unpack(index)) for g, index in parts),
                    )
                    for module, path, length, parts in data["attributes"]
                ),
                blocks=tuple(
                    Block(name, frozenset(zeroed), tuple(numbers), reason)
                    for name, zeroed, numbers, reason in data["blocks"]
                ),
                cost=CostModel(
                    constants=np.array(cost["constants"], dtype=np.int64),
                    coefficients=np.array(cost["coefficients"], dtype=np.int64).reshape(num_groups, -1),
                    macs=tuple((factor, tuple(forms), block) for factor, forms, block in cost["macs"]),
                    params=tuple((factor, tuple(forms), block) for factor, forms, block in cost["params"]),
                    macs_at=tuple((size, tuple(factors)) for size, factors in cost["macs_at"]),
                ),
            )
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise EagleEyeError(f"`text` is not a channel graph ({error}); write it with `graph.to_json()`") from error


def check_widths(graph: ChannelGraph, widths: Sequence[int]) -> tuple[int, ...]:
    """Return `widths` as integers after checking them against the graph.

    Raises:
        EagleEyeError: not one per group, out of range, not a multiple of the step, or a pinned group shrinks.
    """
    if len(widths) != len(graph.groups):
        raise EagleEyeError(f"`widths` needs one integer per group ({len(graph.groups)}); got {len(widths)}")
    for width, group in zip(widths, graph.groups, strict=True):
        if width == group.channels:
            continue
        if group.reason:
            raise EagleEyeError(f"`widths`: group {group.name} can't be pruned ({group.reason}); keep {group.channels}")
        if width != int(width) or not 0 < width < group.channels or width % group.step:
            raise EagleEyeError(
                f"`widths`: group {group.name} got {width}; "
                f"it takes a multiple of {group.step} from {group.step} to {group.channels}"
            )
    return tuple(int(width) for width in widths)


def check_blocks(graph: ChannelGraph, removed_blocks: Collection[str]) -> tuple[str, ...]:
    """Return the names in the graph's order after checking them against it.

    Raises:
        EagleEyeError: not a collection of names, a name is no block of the graph, or one that can't go.
    """
    if isinstance(removed_blocks, str):
        raise EagleEyeError(f"`removed_blocks` is a collection of names; got the text {removed_blocks!r}")
    known = {block.name: block for block in graph.blocks}
    for name in removed_blocks:
        if name not in known:
            can = ", ".join(block.name for block in graph.removable[:3]) or "none"
            raise EagleEyeError(f"`removed_blocks`: {name!r} is no block of this network; those that can go: {can}...")
        if known[name].reason:
            raise EagleEyeError(f"`removed_blocks`: {name} can't go ({known[name].reason})")
    return tuple(name for name in known if name in set(removed_blocks))


def _pack(index: np.ndarray) -> list[Any]:
    """[rows, columns, start, step of rows, step of columns] for a regular index, else [rows, columns, values]."""
    rows, columns = index.shape
    start = int(index[0, 0]) if index.size else 0
    down = int(index[1, 0]) - start if rows > 1 else 0
    across = int(index[0, 1]) - start if columns > 1 else 0
    if np.array_equal(index, start + down * np.arange(rows)[:, None] + across * np.arange(columns)):
        return [rows, columns, start, down, across]
    return [rows, columns, index.ravel().tolist()]


def _unpack(packed: list[Any]) -> np.ndarray:
    rows, columns, *rest = packed
    if len(rest) == 1:
        return np.array(rest[0], dtype=np.int64).reshape(rows, columns)
    start, down, across = rest
    return start + down * np.arange(rows, dtype=np.int64)[:, None] + across * np.arange(columns, dtype=np.int64)
