"""The search journal: one line with the configuration, then one per finished candidate and stage."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eagleeye_hf.errors import EagleEyeError


class Journal:
    """Appends to `search.jsonl`, and goes on from one that a killed run left behind.

    Raises:
        EagleEyeError: the file belongs to another configuration, or is no journal.
    """

    def __init__(self, path: Path, config: Mapping[str, Any]) -> None:
        self.path, self.config = path, json.loads(json.dumps(config))
        self.rows: list[dict[str, Any]] = []
        self.facts: dict[str, Any] = {}
        lines = complete_lines(path)
        if lines:
            _check_config(path, lines[0], self.config)
            self.facts = lines[0]["facts"]
            self.rows = lines[1:]

    def start(self, facts: Mapping[str, Any]) -> None:
        """Write the first line, or drop a torn last one: the whole lines are written beside and renamed into place."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        head = {"fingerprint": fingerprint(self.config), "config": self.config, "facts": dict(facts)}
        temporary = self.path.with_suffix(".tmp")
        with temporary.open("w") as file:
            file.writelines(json.dumps(row) + "\n" for row in [head, *self.rows])
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.path)

    def append(self, row: Mapping[str, Any]) -> None:
        self.rows.append(dict(row))
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())


def fingerprint(config: Mapping[str, Any]) -> str:
    """A short hash of everything that determines the candidates and their scores."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]


def complete_lines(path: Path) -> list[dict[str, Any]]:
    """Every whole line; a torn last one (the run was killed while writing) is left out.

    Raises:
        EagleEyeError: the file is no journal.
    """
    if not path.exists():
        return []
    rows = []
    for line in path.read_text().splitlines(keepends=True):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            if line.endswith("\n"):
                raise _no_journal(path) from error
    if rows and not (isinstance(rows[0], dict) and isinstance(rows[0].get("config"), dict) and "facts" in rows[0]):
        raise _no_journal(path)
    return rows


def _no_journal(path: Path) -> EagleEyeError:
    return EagleEyeError(f"{path} is not a search journal; move it away, or choose another folder")


def _check_config(path: Path, head: dict[str, Any], config: Mapping[str, Any]) -> None:
    old = head["config"]
    changed = [
        f"{key}: {old.get(key)!r} then, {config.get(key)!r} now"
        for key in sorted({*old, *config})
        if old.get(key) != config.get(key)
    ]
    if changed:
        raise EagleEyeError(
            f"{path} was started with another configuration ({'; '.join(changed)}). "
            "Run with the old one to go on, or choose another output folder."
        )
