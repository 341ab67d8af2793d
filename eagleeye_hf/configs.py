"""One mechanism for settings: dataclasses that check themselves, and their flat form in files."""

from __future__ import annotations

import functools
import math
import types
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from eagleeye_hf.errors import EagleEyeError


@dataclass(frozen=True)
class Within:
    """An interval in which a number lies, as mathematics writes it: `Annotated[float, Within("[0, 1)")]`."""

    interval: str

    @property
    def ends(self) -> tuple[float, float]:
        low, high = self.interval[1:-1].split(",")
        return float(low), float(high)

    def holds(self, value: float) -> bool:
        low, high = self.ends
        above = value > low if self.interval[0] == "(" else value >= low
        return above and (value < high if self.interval[-1] == ")" else value <= high)

    def __str__(self) -> str:
        low, high = self.ends
        if math.isinf(high):
            return f"above {low:g}" if self.interval[0] == "(" else f"at least {low:g}"
        return f"in {self.interval}"


def check_fields(config: Any) -> None:
    """Compare a frozen dataclass with its annotations, from its `__post_init__`; lists become tuples.

    Raises:
        EagleEyeError: a value has another type, or is out of its range.
    """
    for name, annotation in annotations_of(config.__class__).items():
        object.__setattr__(config, name, check_value(name, getattr(config, name), annotation))


def check_value(name: str, value: Any, annotation: Any) -> Any:
    """The value of a field, a list as a tuple.

    Raises:
        EagleEyeError: it has another type, or is out of its range.
    """
    value = tuple(value) if isinstance(value, list) else value
    if not _fits(value, annotation):
        raise EagleEyeError(f"`{name}` is {describe_type(annotation)}; got {value!r}")
    return value


@functools.lru_cache
def annotations_of(config_class: Hashable) -> dict[str, Any]:
    """The annotation of each field, resolved."""
    kind: Any = config_class
    hints = get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in fields(kind)}


def _fits(value: Any, annotation: Any) -> bool:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation is Any:
        return True
    if origin is Annotated:
        limits = [limit for limit in arguments[1:] if isinstance(limit, Within)]
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return _fits(value, arguments[0]) and all(limit.holds(value) for limit in limits)
        return _fits(value, arguments[0])
    if origin in (Union, types.UnionType):
        return any(_fits(value, part) for part in arguments)
    if origin is Literal:
        return value in arguments
    if origin in (tuple, Sequence):
        parts = arguments if origin is tuple and arguments[-1] is not ... else arguments[:1] * _length(value)
        return isinstance(value, tuple) and len(value) == len(parts) and all(map(_fits, value, parts))
    if annotation is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if annotation in (None, types.NoneType):
        return value is None
    return isinstance(value, annotation)


def _length(value: Any) -> int:
    return len(value) if isinstance(value, tuple) else 0


def describe_type(annotation: Any) -> str:
    """What a field takes, for people to read."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        limits = [str(limit) for limit in arguments[1:] if isinstance(limit, Within)]
        return ", ".join([describe_type(arguments[0]), *limits])
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(describe_type(part) for part in arguments))
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if origin is tuple and arguments[-1] is not ...:
        return f"a pair of {' and '.join(map(describe_type, arguments))}"
    if origin in (tuple, Sequence):
        return f"a list, of which each is {describe_type(arguments[0])}"
    names = {int: "an integer", float: "a number", bool: "true or false", str: "a text"}
    if annotation in (None, types.NoneType):
        return "left out"
    return names.get(annotation) or f"a {annotation.__name__}"


def flat_items(config: Any) -> Iterator[tuple[str, Any]]:
    """Every setting by its name; those of configs inside a config stand beside its own."""
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            yield from flat_items(value)
        else:
            yield field.name, value


def flat_dict(config: Any) -> dict[str, Any]:
    """The same as what JSON and YAML can hold; names are those of the flags."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in flat_items(config)}
