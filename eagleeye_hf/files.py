"""Files that are on the disk when they are said to be, whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path


def sync_path(path: Path) -> None:
    """Onto the disk: a file's bytes, or the names in a folder, so that a loss of power doesn't undo them."""
    if path.is_dir() and os.name != "posix":  # elsewhere folders can't be opened
        return
    place = os.open(path, os.O_RDONLY)
    try:
        os.fsync(place)
    finally:
        os.close(place)


def write_whole(path: Path, text: str, beside: Path | None = None) -> None:
    """Write a text so that the file has the old one or the new one, whatever happens.

    Args:
        beside: where the new one is written first, on the same disk.
    """
    part = (beside or path.parent) / (path.name + ".tmp")
    part.write_text(text, encoding="utf-8")
    sync_path(part)
    os.replace(part, path)
    sync_path(path.parent)
