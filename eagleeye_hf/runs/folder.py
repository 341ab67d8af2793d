"""The folder of a run: what the run wrote there is on record, and nobody else writes there at the same time."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from eagleeye_hf.errors import EagleEyeError
from eagleeye_hf.files import write_whole
from eagleeye_hf.processes import is_main
from eagleeye_hf.publishing.config import CARD, CONFIG, WEIGHTS
from eagleeye_hf.training.state import make_folder

HIDDEN = ".eagleeye"
"""A folder in a run's folder, with the record and the lock."""
LOCKS: dict[Path, FileLock] = {}
"""Held by this process until it ends; they would open as soon as nobody refers to them."""
SAVED = (WEIGHTS, CARD, CONFIG)
"""What saving writes, `config.json` last: a folder that has it holds a whole checkpoint."""


class RunFolder:
    """A folder that one job works in; only the main process writes.

    Args:
        path: an existing folder.
        job: what works there, as `compress`.
    """

    def __init__(self, path: Path, job: str) -> None:
        self.path, self.job = path, job
        self.record = read_record(path) or {"job": job, "files": [], "finished": False, "summary": ""}

    def lock(self) -> None:
        """Keep other runs out until this process ends.

        Raises:
            EagleEyeError: one is at work there.
        """
        (self.path / HIDDEN).mkdir(exist_ok=True)
        _lock(self.path)

    def claim(self, *names: str) -> None:
        """Put files or folders on record that this run is going to write.

        Raises:
            EagleEyeError: there is one that no run has written.
        """
        for name in names:
            if name not in self.record["files"] and (self.path / name).exists():
                raise EagleEyeError(
                    f"`output={self.path}` holds {name}, which this run has not written; move it away, or choose "
                    "another folder"
                )
        self.note(files=list(dict.fromkeys([*self.record["files"], *names])))

    def claim_checkpoint(self) -> None:
        """Put a checkpoint's files on record; one that is whole, though the run was killed before it said so, goes."""
        self.claim(*SAVED)
        if self.has_result:
            self.remove(*SAVED)

    def note(self, **changes: Any) -> None:
        """Write into the record."""
        self.record |= changes
        file = self.path / HIDDEN / "run.json"
        file.parent.mkdir(exist_ok=True)
        write_whole(file, json.dumps(self.record))

    def write(self, name: str, text: str) -> None:
        """Write a file of this run, whole or not at all."""
        self.claim(name)
        write_whole(self.path / name, text, beside=self.path / HIDDEN)

    def remove(self, *names: str) -> None:
        """Remove what this run wrote, and nothing else."""
        for name in names:
            path = self.path / name
            if name in self.record["files"] and path.is_dir():
                shutil.rmtree(path)
            elif name in self.record["files"]:
                path.unlink(missing_ok=True)

    @property
    def has_result(self) -> bool:
        """Whether the checkpoint is whole, though the run may have ended before it said so."""
        return (self.path / CONFIG).exists() and CONFIG in self.record["files"]


def _lock(path: Path) -> FileLock:
    file = (path / HIDDEN / "lock").resolve()
    lock = LOCKS.setdefault(file, FileLock(file))
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise EagleEyeError(
            f"`output={path}`: another run is at work there; wait for its end, or choose another folder"
        ) from error
    return lock


def check_output(output: str, job: str, finished: bool = False) -> Path:
    """Whether a job may work in a folder: new, empty, or one that the same job left unfinished. Nothing is changed.

    Args:
        finished: whether one that the job has finished will do, too.
    Raises:
        EagleEyeError: it can't be a folder, holds what the job has not written, or another run is at work there.
    """
    if not output:
        raise EagleEyeError("`output` is a folder; got an empty text")
    path = Path(output)
    if path.exists() and not path.is_dir():
        raise EagleEyeError(f"`output={path}` is a file; give a folder")
    record = read_record(path)
    if record is None:
        found = [entry.name for entry in path.iterdir() if entry.name != HIDDEN] if path.is_dir() else []
        if CONFIG in found:
            raise EagleEyeError(f"`output={path}` holds a checkpoint already; choose another folder")
        if found:
            raise EagleEyeError(
                f"`output={path}` is not empty (it holds {', '.join(sorted(found)[:3])}); choose another folder"
            )
    elif record["job"] != job:
        raise EagleEyeError(f"`output={path}` is of `eagleeye {record['job']}`; choose another folder")
    elif record["finished"] and not finished:
        raise EagleEyeError(
            f"`output={path}` holds a checkpoint already; publish it with `eagleeye push`, or choose another folder"
        )
    parent = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise EagleEyeError(f"`output={path}` can't be written: {parent} is no folder, or not yours to write in")
    if is_main() and (path / HIDDEN / "lock").exists():
        _lock(path).release()
    return path


def open_run(output: str, job: str, finished: bool = False) -> RunFolder:
    """The folder of a job, after the same checks. In the main process it is made and locked."""
    path = check_output(output, job, finished)
    if not is_main():
        return RunFolder(path, job)
    make_folder(path, "output")
    run = RunFolder(path, job)
    run.lock()
    if not run.has_result:  # killed while it saved
        run.remove(*SAVED, *(f"{name}.tmp" for name in SAVED))
    run.note()
    return run


def read_record(path: Path) -> dict[str, Any] | None:
    """What a run wrote about itself; None where there is no run.

    Raises:
        EagleEyeError: the record is damaged.
    """
    file = path / HIDDEN / "run.json"
    if not file.exists():
        return None
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        known = isinstance(record, Mapping) and isinstance(record["job"], str)
        if not known or not all(isinstance(name, str) for name in record["files"]):
            raise ValueError("it has other entries than a run writes")
        return {"finished": False, "summary": "", **record}
    except (ValueError, KeyError, TypeError) as error:
        raise EagleEyeError(f"{file} is damaged ({error}); choose another folder") from error
