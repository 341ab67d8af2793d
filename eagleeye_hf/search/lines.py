"""The lines of a journal: each carries a checksum, and is checked when it is read."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, get_args, get_origin

from eagleeye_hf.configs import annotations_of, check_value
from eagleeye_hf.evaluation.objective import Score
from eagleeye_hf.runtimes.latency import Latency
from eagleeye_hf.search.candidate import Candidate, Line, Scored, Timed

CHECKSUM = "checksum"
"""Key of a row, over the rest of it; rows without are taken as they are."""
SIGNED = ("loss", "reported", "predicted_ms", "rank_correlation", "constant")
"""Numbers that may be negative."""


def encode_row(row: Mapping[str, Any]) -> str:
    """A line with its checksum."""
    text = json.dumps(row)
    return json.dumps({**row, CHECKSUM: _checksum(text)}) + "\n"


def decode_row(line: bytes) -> dict[str, Any]:
    """
    Raises:
        ValueError, RecursionError: it is no object, or not what was written.
    """
    row = json.loads(line.decode())
    if not isinstance(row, dict):
        raise ValueError("not an object")
    told = row.pop(CHECKSUM, None)
    if told is not None and told != _checksum(json.dumps(row)):
        raise ValueError("its checksum is another: it was edited, or the disk is broken")
    return row


def _checksum(text: str) -> str:
    return f"{zlib.crc32(text.encode()):08x}"


def read_line(data: Mapping[str, Any]) -> Line:
    """What `to_dict` of a line gave.

    Raises:
        KeyError, TypeError, ValueError, ArithmeticError: it is no such thing.
    """
    line: Line
    if data["kind"] == "latency":
        latency = Latency.from_dict(data["latency"])
        line = Timed(latency=latency, **{key: data[key] for key in ("index", "beyond", "elapsed")})
    elif data["kind"] == "score":
        line = Scored(
            candidate=Candidate.from_dict(data),
            score=None if data["score"] is None else Score.from_dict(data["score"]),
            **{key: data[key] for key in ("stage", "status", "seconds", "elapsed")},
        )
        if (line.status == "ok") != (line.score is not None):
            raise ValueError(f"`score` and `status={line.status}` contradict each other")
    else:
        raise ValueError(f"unknown kind {data['kind']!r:.50}")
    check_record(line)
    return line


def check_record(record: Any, finite: bool = True) -> None:
    """Compare a record, and those inside it, with their annotations.

    Args:
        finite: scores are finite numbers.
    Raises:
        ValueError, OverflowError: a value is of another type, not finite, or negative.
    """
    kind: Any = type(record)
    hints = annotations_of(kind)
    for field in fields(record):
        value, annotation = getattr(record, field.name), hints[field.name]
        if is_dataclass(value):
            if not any(type(value) is kind for kind in (annotation, *get_args(annotation))):
                raise ValueError(f"`{field.name}` is a {type(value).__name__}")
            check_record(value, finite)
        elif get_origin(annotation) is dict:
            for name, item in check_value(field.name, value, dict).items():
                check_value(f"{field.name} of {name}", item, get_args(annotation)[1])
        elif isinstance(value, tuple) and hasattr(value, "_asdict"):  # integers, as far as one candidate goes
            for name, item in value._asdict().items():
                _check_not_negative(name, check_value(name, item, int))
        elif finite or not (isinstance(record, Score) and isinstance(value, float)):
            check_value(field.name, value, annotation)
            if field.name not in SIGNED:
                _check_not_negative(field.name, value)


def _check_not_negative(name: str, value: Any) -> None:
    if isinstance(value, (int, float)) and value < 0:
        raise ValueError(f"`{name}` is {value}, below 0")


@dataclass(frozen=True, kw_only=True)
class Standing:
    """What the lines of a journal come to: of lines about the same the last holds."""

    scored: dict[tuple[int, int], Scored]
    """By index and stage."""
    timed: dict[int, Timed]
    """By index."""
    healed: bool
    """Whether a score replaced a failure, so that what was proposed later may have changed."""


def settle_lines(lines: Iterable[Line]) -> Standing:
    """Go through the lines in their order."""
    scored: dict[tuple[int, int], Scored] = {}
    timed: dict[int, Timed] = {}
    candidates: dict[int, Candidate] = {}
    healed = False
    for line in lines:
        if isinstance(line, Timed):
            timed[line.index] = line
            continue
        if candidates.get(line.index, line.candidate).strategy != line.candidate.strategy:  # proposed anew
            scored = {key: old for key, old in scored.items() if key[0] != line.index}
            timed.pop(line.index, None)
        candidates[line.index] = line.candidate
        before = scored.get((line.index, line.stage))
        healed |= before is not None and before.score is None and line.score is not None
        scored[line.index, line.stage] = line
    return Standing(scored=scored, timed=timed, healed=healed)
