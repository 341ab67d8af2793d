"""The study's journals: a line with the settings, then one per sub-net as soon as it is done."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from eagleeye_hf.errors import EagleEyeError
from eagleeye_hf.evaluation.metrics import Metrics
from eagleeye_hf.evaluation.objective import Score
from eagleeye_hf.files import write_whole
from eagleeye_hf.search.candidate import Candidate
from eagleeye_hf.search.lines import decode_row, encode_row


class Indexed(Protocol):
    """What is known of a sub-net."""

    @property
    def index(self) -> int: ...
    def to_dict(self) -> dict[str, Any]: ...


Line = TypeVar("Line", bound=Indexed)

TEST, HOLDOUT = "test", "holdout"
"""The images on which fine-tuned sub-nets are measured."""


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A sub-net, its scores, and what came of it."""

    candidate: Candidate
    scores: dict[str, list[float]]
    """By name, as "adaptive loss": one number per draw of calibration images."""
    tuned: dict[str, Metrics]
    """After fine-tuning, on the test and on the holdout images."""
    seconds: dict[str, float]
    """By what they were spent on."""

    @property
    def index(self) -> int:
        return self.candidate.index

    def mean(self, name: str) -> float:
        """A score, averaged over the draws."""
        values = self.scores[name]
        return sum(values) / len(values)

    def to_dict(self) -> dict[str, Any]:
        score = self.candidate.score
        return self.candidate.to_dict() | {
            "search_score": score and score.to_dict(),
            "scores": self.scores,
            "tuned": {name: found.to_dict() for name, found in self.tuned.items()},
            "seconds": self.seconds,
        }

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Finished:
        score = data["search_score"]
        candidate = Candidate.from_dict(data)
        if score is not None:
            candidate = replace(candidate, score=Score.from_dict(score), status="ok")
        return Finished(
            candidate=candidate,
            scores={name: [float(value) for value in values] for name, values in data["scores"].items()},
            tuned={name: Metrics(**values) for name, values in data["tuned"].items()},
            seconds=dict(data["seconds"]),
        )


def check_candidates(lines: Mapping[int, Finished], candidates: Sequence[Candidate]) -> None:
    """
    Raises:
        EagleEyeError: what is on record was found out about other sub-nets than these.
    """
    for candidate in candidates:
        line = lines.get(candidate.index)
        if line is not None and line.candidate.strategy != candidate.strategy:
            raise EagleEyeError(
                f"sub-net {candidate.index} on record is another than the one drawn now, as where `divisor=auto` was "
                "measured anew; give the divisor as a number, or choose another folder"
            )


class StudyJournal(Generic[Line]):
    """Appends to a journal, and goes on from one that a killed study left behind.

    Args:
        read: makes a line of what its `to_dict` gave.
    Raises:
        EagleEyeError: the file belongs to other settings, is no journal, or can't be written.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], read: Callable[[Mapping[str, Any]], Line]) -> None:
        self.path, self.settings = path, json.loads(json.dumps(settings))
        self.lines: dict[int, Line] = {}
        if path.exists():
            old, self.lines = read_lines(path, read)
            changed = [name for name in {**old, **self.settings} if old.get(name) != self.settings.get(name)]
            if old and changed:
                told = "; ".join(f"{name}: {old.get(name)!r} then, {self.settings.get(name)!r} now" for name in changed)
                raise EagleEyeError(
                    f"{path} was started with other settings ({told}). Run with the old ones to go on, or choose "
                    "another folder"
                )
        self._write("".join(map(encode_row, [self.settings, *(line.to_dict() for line in self.lines.values())])))

    def append(self, line: Line) -> None:
        self._write(encode_row(line.to_dict()), more=True)
        self.lines[line.index] = line

    def _write(self, text: str, more: bool = False) -> None:
        try:
            if not more:
                write_whole(self.path, text)
                return
            with self.path.open("a", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise EagleEyeError(
                f"`output={self.path.parent}` can't be written any more ({error}); make room and start again with the "
                "same command"
            ) from error


def read_lines(path: Path, read: Callable[[Mapping[str, Any]], Line]) -> tuple[dict[str, Any], dict[int, Line]]:
    """Settings, and what is on record of sub-nets, by their index; a torn last line is left out.

    Raises:
        EagleEyeError: the file can't be read, or is no journal of a study.
    """
    try:
        texts = path.read_bytes().split(b"\n")
    except OSError as error:
        raise EagleEyeError(f"{path} can't be read: {error}") from error
    settings: dict[str, Any] = {}
    lines: dict[int, Line] = {}
    for number, text in enumerate(texts, 1):
        if not text.strip():
            continue
        try:
            row = decode_row(text)
            if settings:
                line = read(row)
                lines[line.index] = line
            else:
                settings = row
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            if number == len(texts):  # killed while it wrote
                continue
            raise EagleEyeError(
                f"{path} is not a study's journal (line {number}: {type(error).__name__}: {error!s:.300}); move it "
                "away, or choose another folder"
            ) from error
    return settings, lines
