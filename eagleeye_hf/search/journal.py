"""The search journal: one line with the configuration, then one per finished candidate."""

from __future__ import annotations

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

    def __init__(self, path: Path, config: Mapping[str, Any], write: bool = True) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        config = json.loads(json.dumps(config))
        lines = _complete_lines(path)
        if lines:
            _check_config(path, lines[0], config)
            self.rows = lines[1:]
        if write:
            path.parent.mkdir(parents=True, exist_ok=True)
            # a torn last line (the run was killed while writing) is dropped by writing the whole lines again
            temporary = path.with_suffix(".tmp")
            temporary.write_text("".join(json.dumps(row) + "\n" for row in [{"config": config}, *self.rows]))
            os.replace(temporary, path)

    def append(self, row: Mapping[str, Any]) -> None:
        self.rows.append(dict(row))
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _complete_lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    rows = []
    for line in path.read_text().splitlines(keepends=True):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            if line.endswith("\n"):
                raise EagleEyeError(
                    f"{path} is not a search journal; move it away, or choose another folder"
                ) from error
    return rows


def _check_config(path: Path, head: dict[str, Any], config: Mapping[str, Any]) -> None:
    old = head.get("config")
    if not isinstance(old, dict):
        raise EagleEyeError(f"{path} is not a search journal; move it away, or choose another folder")
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
