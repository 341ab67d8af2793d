"""Files that are written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from safetensors import SafetensorError

from eagleeye_hf.errors import EagleEyeError
from eagleeye_hf.files import sync_path


def write_files(folder: Path, writers: Mapping[str, Callable[[Path], object]]) -> None:
    """Write files into a folder, made where there is none; none is renamed to its place before all are on the disk.

    Args:
        writers: by name, in the order of the renames; each writes a file to the path that it is given.
    Raises:
        EagleEyeError: they can't be written; nothing of them is left then.
    """
    parts = {folder / name: folder / (name + ".tmp") for name in writers}
    placed: list[Path] = []
    made = _missing_parents(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for part, write in zip(parts.values(), writers.values(), strict=True):
            _write_one(part, write)
        for path, part in parts.items():
            os.replace(part, path)
            placed.append(path)
        sync_path(folder)
    except (OSError, SafetensorError) as error:
        for path in placed:
            path.unlink(missing_ok=True)
        _remove(parts.values(), made)
        reason = getattr(error, "strerror", None) or str(error)
        raise EagleEyeError(f"`folder={folder}` can't be written: {reason}") from error
    except BaseException:
        _remove(parts.values(), made)
        raise


def _write_one(path: Path, write: Callable[[Path], object]) -> None:
    """Write, with the permissions that files have here, and onto the disk."""
    path.unlink(missing_ok=True)
    path.touch()
    mode = path.stat().st_mode & 0o777
    write(path)
    path.chmod(mode)
    sync_path(path)


def _missing_parents(folder: Path) -> list[Path]:
    """The folders that `mkdir(parents=True)` will make, the innermost first."""
    return [path for path in (folder, *folder.parents) if not path.exists()]


def _remove(parts: Iterable[Path], made: list[Path]) -> None:
    """Drop what was begun, as far as the disk lets us."""
    for part in parts:
        try:
            part.unlink(missing_ok=True)
        except OSError:  # what can't be written can't be cleaned either
            continue
    for folder in made:
        try:
            folder.rmdir()
        except OSError:  # not made, or somebody else's files are in it by now
            return
