"""Which modules can go as a whole: those that give what they are given once the end of their branch is zero."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from eagleeye_hf.channels.graph import Block, ChannelGroup
from eagleeye_hf.tracing.listening import heard_modules
from eagleeye_hf.tracing.values import Values

OTHER_SHAPE = "its output has another shape than its input"
OTHER_VALUES = "its output is not its input when its branch adds zero"
SEVERAL_RUNS = "it runs several times"
OTHER_NAME = "it, or a part of it, is reached by another name, too"


@dataclass
class BlockFinder:
    """Listens to the modules while they run."""

    model: nn.Module
    values: Values
    same: dict[str, frozenset[str]] = field(default_factory=dict)
    """Per module that can go: the parameters that make it give its input."""
    adds: dict[str, str] = field(default_factory=dict)
    """Per module of a sequence in which two tensors are added: why it can't go, if it can't."""
    _stack: list[tuple[nn.Module, Tensor | None, int, tuple[int, ...]]] = field(default_factory=list)
    _runs: dict[str, int] = field(default_factory=dict)
    _names: dict[int, str] = field(default_factory=dict)

    @contextmanager
    def listen(self) -> Iterator[None]:
        self._names = {id(module): name for name, module in self.model.named_modules()}
        self._members = {
            id(child) for module in self.model.modules() if isinstance(module, (nn.Sequential, nn.ModuleList))
            for child in module.children() if not _is_container(child)
        }  # fmt: skip
        with heard_modules(self._enter, self._leave):
            yield

    @property
    def running(self) -> str:
        """The name of the module that runs."""
        return next((self._names[id(item[0])] for item in reversed(self._stack) if id(item[0]) in self._names), "")

    def added(self) -> None:
        """The running module has added two tensors."""
        for module, *_ in reversed(self._stack):
            if id(module) in self._members:
                self.adds.setdefault(self._names[id(module)], OTHER_VALUES)
                return

    def _enter(self, module: nn.Module, args: Any) -> None:
        given = args[0] if args and isinstance(args[0], Tensor) else None
        number = 0 if given is None else self.values.of(given).number
        self._stack.append((module, given, number, () if given is None else tuple(given.shape)))
        self.values.watched.append(number)

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        _, given, number, shape = self._stack.pop()
        self.values.watched.pop()
        name = self._names.get(id(module), "")
        if not name:
            return
        self._runs[name] = self._runs.get(name, 0) + 1
        if given is None or not isinstance(output, Tensor):
            return
        if name in self.adds and tuple(output.shape) != shape:
            self.adds[name] = OTHER_SHAPE
        needed = self.values.of(output).same_if.get(number)
        if needed and not _is_container(module) and all(tensor.startswith(f"{name}.") for tensor in needed):
            self.same[name] = needed

    def _is_shared(self, name: str, places: dict[int, set[str]]) -> bool:
        block = self.model.get_submodule(name)
        parts = [id(part) for part in (*block.modules(), *block.parameters(), *block.buffers())]
        return any(place != name and not _lies_in(place, name) for part in parts for place in places.get(part, ()))

    def finish(self, groups: tuple[ChannelGroup, ...]) -> tuple[Block, ...]:
        """The blocks, in the order of the model's modules."""
        again = {name for name in self.same if self._runs[name] > 1}
        members = {name for name in self.same if id(self.model.get_submodule(name)) in self._members}
        inner = {name for name in members if not _holds(name, members)}
        chosen = inner | {name for name in self.same if not any(_lies_in(name, m) or _lies_in(m, name) for m in inner)}
        chosen = {name for name in chosen if not any(_lies_in(name, other) for other in chosen)}
        places = reached_by(self.model)
        refused = {n for n in self.adds if not any(n == c or _lies_in(n, c) or _lies_in(c, n) for c in chosen)}
        blocks = []
        for name, _ in self.model.named_modules():
            if name in chosen:
                reason = SEVERAL_RUNS if name in again else OTHER_NAME if self._is_shared(name, places) else ""
                blocks.append(Block(name, self.same[name], _inside(name, groups), reason))
            elif name in refused:
                blocks.append(Block(name, frozenset(), (), self.adds[name]))
        return tuple(blocks)


def reached_by(model: nn.Module) -> dict[int, set[str]]:
    """By which names each module, parameter and buffer of a model can be reached, also in plain lists."""
    places: dict[int, set[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        places.setdefault(id(module), set()).add(name)
        for key, tensor in (*module._parameters.items(), *module._buffers.items()):
            places.setdefault(id(tensor), set()).add(f"{name}.{key}")
        for key, value in vars(module).items():
            listed = value.values() if isinstance(value, dict) else value
            if not key.startswith("_") and isinstance(value, (list, tuple, dict)):
                for item in listed:
                    if isinstance(item, (nn.Module, Tensor)):
                        places.setdefault(id(item), set()).add(f"{name}.{key}[]")
    return places


def _is_container(module: nn.Module) -> bool:
    return isinstance(module, nn.ModuleList) or type(module).forward is nn.Sequential.forward


def _lies_in(name: str, other: str) -> bool:
    return name.startswith(f"{other}.")


def _holds(name: str, others: set[str]) -> bool:
    return any(_lies_in(other, name) for other in others)


def _inside(name: str, groups: tuple[ChannelGroup, ...]) -> tuple[int, ...]:
    """Numbers of the groups all members of which are in the module."""
    return tuple(
        number for number, group in enumerate(groups) if all(_lies_in(member.tensor, name) for member in group.members)
    )
