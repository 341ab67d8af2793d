"""The study's journal: a line with the settings, then one per sub-net that is scored and fine-tuned."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from eagleeye_hf.errors import EagleEyeError
from eagleeye_hf.evaluation.metrics import Metrics
from eagleeye_hf.evaluation.objective import Score
from eagleeye_hf.files import write_whole
from eagleeye_hf.search.candidate import Candidate
from eagleeye_hf.search.lines import decode_row, encode_row

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


class StudyJournal:
    """Appends to `study.jsonl`, and goes on from one that a killed study left behind.

    Raises:
        EagleEyeError: the file belongs to other settings, is no journal, or can't be written.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path, self.settings = path, json.loads(json.dumps(settings))
        self.lines: dict[int, Finished] = {}
        if path.exists():
            old, self.lines = read_study(path)
            changed = [name for name in {**old, **self.settings} if old.get(name) != self.settings.get(name)]
            if old and changed:
                told = "; ".join(f"{name}: {old.get(name)!r} then, {self.settings.get(name)!r} now" for name in changed)
                raise EagleEyeError(
                    f"{path} was started with other settings ({told}). Run with the old ones to go on, or choose "
                    "another folder"
                )
        self._write("".join(map(encode_row, [self.settings, *(line.to_dict() for line in self.lines.values())])))

    def append(self, line: Finished) -> None:
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


def read_study(path: Path) -> tuple[dict[str, Any], dict[int, Finished]]:
    """Settings and finished sub-nets, by their index; a torn last line is left out.

    Raises:
        EagleEyeError: the file can't be read, or is no journal of a study.
    """
    try:
        texts = path.read_bytes().split(b"\n")
    except OSError as error:
        raise EagleEyeError(f"{path} can't be read: {error}") from error
    settings: dict[str, Any] = {}
    lines: dict[int, Finished] = {}
    for number, text in enumerate(texts, 1):
        if not text.strip():
            continue
        try:
            row = decode_row(text)
            if settings:
                line = Finished.from_dict(row)
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
