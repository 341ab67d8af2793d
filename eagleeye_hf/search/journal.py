"""The search journal: one line with the settings and what was measured once, then one per score and measurement."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from eagleeye_hf.errors import EagleEyeError
from eagleeye_hf.evaluation.preparation import Preparation
from eagleeye_hf.files import write_whole
from eagleeye_hf.search.candidate import Candidate, Line, Scored, Timed
from eagleeye_hf.search.lines import check_record, decode_row, encode_row, read_line

HEAD = b'{"fingerprint": '
"""How a journal begins."""


class Journal:
    """Appends to `search.jsonl`, and goes on from one that a killed run left behind.

    Raises:
        EagleEyeError: the file belongs to another configuration, is no journal, or can't be written.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path, self.settings = path, json.loads(json.dumps(settings))
        self.lines: list[Line] = []
        self.prepared: Preparation | None = None
        if path.exists():
            old, self.prepared, self.lines = read_lines(path)
            if self.prepared is not None:
                _check_settings(path, old, self.settings)

    def start(self, prepared: Preparation) -> None:
        """Write the first line, or drop a torn last one: the whole lines are written beside and renamed into place."""
        head = {
            "fingerprint": fingerprint(self.settings),
            "settings": self.settings,
            "prepared": asdict(prepared),
        }
        with self._writable():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            rows = [head, *(line.to_dict() for line in self.lines)]
            write_whole(self.path, "".join(map(encode_row, rows)))

    def append(self, lines: Sequence[Line]) -> None:
        with self._writable(), self.path.open("a") as file:
            file.write("".join(encode_row(line.to_dict()) for line in lines))
            file.flush()
            os.fsync(file.fileno())
        self.lines += lines

    @contextmanager
    def _writable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise EagleEyeError(
                f"`output={self.path.parent}` can't be written any more ({error}); make room and start again with the "
                "same command"
            ) from error


def fingerprint(settings: Mapping[str, Any]) -> str:
    """A short hash of everything that determines the candidates and their scores."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def read_lines(path: Path) -> tuple[dict[str, Any], Preparation | None, list[Line]]:
    """Settings, what was prepared (None where there is no whole line) and every whole line of a journal.

    A torn last line (the run was killed while writing) is left out, and so are empty ones.

    Raises:
        EagleEyeError: the file can't be read or is no journal; the message tells the line.
    """
    try:
        texts = path.read_bytes().split(b"\n")
    except OSError as error:
        raise EagleEyeError(f"{path} can't be read: {error}") from error
    settings: dict[str, Any] = {}
    prepared: Preparation | None = None
    lines: list[Line] = []
    known = set[int]()
    for number, text in enumerate(texts, 1):
        if not text.strip():
            continue
        try:
            row = decode_row(text)
            if prepared is None:
                settings, prepared = _read_head(row)
                continue
            line = read_line(row)
            if isinstance(line, Timed) and line.index not in known:
                raise ValueError(f"candidate {line.index} has milliseconds, but no score")
            if isinstance(line, Scored):
                _check_fit(line.candidate, settings)
        except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
            torn = number == len(texts) and (prepared is not None or text[: len(HEAD)] == HEAD[: len(text)])
            if torn:
                continue
            raise EagleEyeError(
                f"{path} is not a search journal (line {number}: {type(error).__name__}: {error!s:.300}); "
                "move it away, or choose another folder"
            ) from error
        known.add(line.index)
        lines.append(line)
    return settings, prepared, lines


def _read_head(row: Mapping[str, Any]) -> tuple[dict[str, Any], Preparation]:
    settings, prepared = dict(row["settings"]), Preparation.from_dict(row["prepared"])
    check_record(prepared, finite=False)  # the full network's own statistics may be broken
    return settings, prepared


def _check_fit(candidate: Candidate, settings: Mapping[str, Any]) -> None:
    widths, channels = candidate.strategy.widths, settings.get("channels", candidate.strategy.widths)
    if len(widths) != len(channels):
        raise ValueError(f"{len(widths)} widths of {len(channels)} channel groups")
    if "budgets" in settings and candidate.budget >= len(settings["budgets"]):
        raise ValueError(f"`budget={candidate.budget}` of {len(settings['budgets'])}")


def _check_settings(path: Path, old: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    changed = [
        f"{key}: {old.get(key)!r} then, {settings.get(key)!r} now"
        for key in sorted({*old, *settings})
        if old.get(key) != settings.get(key)
    ]
    if changed:
        raise EagleEyeError(
            f"{path} was started with another configuration ({'; '.join(changed)}). "
            "Run with the old one to go on, or choose another output folder."
        )
