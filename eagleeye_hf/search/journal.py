"""The search journal: one line with the settings and what was measured once, then one per score and measurement."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from eagleeye_hf.errors import EagleEyeError
from eagleeye_hf.evaluation.score import Preparation
from eagleeye_hf.search.candidate import Line, read_line


class Journal:
    """Appends to `search.jsonl`, and goes on from one that a killed run left behind.

    Raises:
        EagleEyeError: the file belongs to another configuration, or is no journal.
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
        self.path.parent.mkdir(parents=True, exist_ok=True)
        head = {
            "fingerprint": fingerprint(self.settings),
            "settings": self.settings,
            "prepared": asdict(prepared),
        }
        temporary = self.path.with_suffix(".tmp")
        with temporary.open("w") as file:
            file.writelines(json.dumps(row) + "\n" for row in [head, *(line.to_dict() for line in self.lines)])
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.path)

    def append(self, line: Line) -> None:
        self.lines.append(line)
        with self.path.open("a") as file:
            file.write(json.dumps(line.to_dict()) + "\n")
            file.flush()
            os.fsync(file.fileno())


def fingerprint(settings: Mapping[str, Any]) -> str:
    """A short hash of everything that determines the candidates and their scores."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def read_lines(path: Path) -> tuple[dict[str, Any], Preparation | None, list[Line]]:
    """Settings, what was prepared (None where there is no whole line) and every whole line of a journal.

    A torn last line (the run was killed while writing) is left out.

    Raises:
        EagleEyeError: the file is no journal; the message tells the line.
    """
    settings: dict[str, Any] = {}
    prepared: Preparation | None = None
    lines: list[Line] = []
    for number, text in enumerate(path.read_text().splitlines(keepends=True), 1):
        try:
            row = json.loads(text)
            if prepared is None:
                settings, prepared = dict(row["settings"]), Preparation.from_dict(row["prepared"])
            else:
                lines.append(read_line(row))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if text.endswith("\n"):
                raise EagleEyeError(
                    f"{path} is not a search journal (line {number}: {type(error).__name__}: {error}); "
                    "move it away, or choose another folder"
                ) from error
    return settings, prepared, lines


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
