"""Checkpoints of training: written beside their place and renamed, the last few kept."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors import SafetensorError

from eagleeye_hf.errors import EagleEyeError
from eagleeye_hf.files import sync_path
from eagleeye_hf.processes import gather_parts, make_in_main
from eagleeye_hf.telling import warn
from eagleeye_hf.training.config import FinetuneConfig
from eagleeye_hf.training.manifest import find_damage, write_manifest

KEPT = 2
"""Checkpoints that stay."""
SIZE = 5
"""Bytes of a checkpoint per byte of the model: weights, two moments of the optimizer, EMA, the best epoch's weights."""
FREE_TO_CHANGE = {"save_steps", "tracker", "compile", "accumulation"}
"""Settings that another start may have different."""
SHARED_SECONDS = 20.0
"""How long a file may take from one machine to the others on a shared disk."""
PROBE = ".writable-"
"""How names of files begin that are only there for a moment, where the system can't do without a name."""


def make_folder(folder: Path, argument: str) -> None:
    """Make a folder and see that it can be written; any number of processes may do so at once.

    Raises:
        EagleEyeError: it can't.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder, prefix=PROBE):
            pass
    except OSError as error:
        raise EagleEyeError(f"`{argument}={folder}` can't be written: {error}") from error


def check_shared(folder: Path, argument: str, accelerator: Accelerator) -> None:
    """See that all processes work in one folder, as on machines that share a disk.

    Raises:
        EagleEyeError: they don't; the same in every process.
    """
    if accelerator.num_processes == 1:
        return

    def leave_mark() -> str:
        mark = folder / f"{PROBE}{uuid.uuid4().hex}"
        mark.touch()
        return mark.name

    def sees(mark: Path) -> bool:
        until = time.monotonic() + SHARED_SECONDS
        while not mark.exists() and time.monotonic() < until:
            time.sleep(0.1)
        return mark.exists()

    mark = folder / make_in_main(accelerator, leave_mark)
    blind = [str(rank) for rank, seen in enumerate(gather_parts(accelerator, lambda: sees(mark))) if not seen]
    if accelerator.is_main_process:
        mark.unlink()
    if blind:
        raise EagleEyeError(
            f"`{argument}={folder}`: what the first process writes there is not seen by process {', '.join(blind)}; "
            "choose a folder on a disk that all machines share"
        )


class Checkpoints:
    """The checkpoints of one run in a folder, `step-N` after N steps; without a folder there are none."""

    def __init__(
        self,
        folder: Path | None,
        config: FinetuneConfig,
        accelerator: Accelerator,
        identity: Mapping[str, object] | None = None,
    ) -> None:
        self.folder, self.accelerator = folder, accelerator
        self.settings = {key: value for key, value in asdict(config).items() if key not in FREE_TO_CHANGE}
        self.settings |= {"mixed_precision": str(accelerator.mixed_precision)} | dict(identity or {})

    def prepare(self, model_bytes: int) -> None:
        """Make the folder, and see that it can hold what will come.

        Raises:
            EagleEyeError: it can't be written, or the disk is too full.
        """
        if self.folder is None:
            return
        make_folder(self.folder, "checkpoint")
        check_shared(self.folder, "checkpoint", self.accelerator)
        held = sum(file.stat().st_size for place in self._found() for file in place.iterdir())
        needed = SIZE * (KEPT + 1) * model_bytes - held
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise EagleEyeError(
                f"`checkpoint={self.folder}`: checkpoints need about {needed / 1e6:,.0f} MB, and the disk has "
                f"{free / 1e6:,.0f} MB free; free some, or choose another folder"
            )

    def load(self) -> dict[str, Any] | None:
        """Restore model, optimizer, scaler and random states from the newest whole checkpoint; returns the rest.

        Damaged ones are put aside, with a warning; None where there is no other.

        Raises:
            EagleEyeError: it is of other settings, or of another network.
        """
        place = self._choose() if self.folder is not None else None
        if place is None:
            return None
        rest = torch.load(place / "rest.pt", map_location="cpu", weights_only=True)
        saved = {"mixed_precision": self.settings["mixed_precision"]} | rest["settings"]
        if saved != self.settings:
            keys = [key for key in {**self.settings, **saved} if saved.get(key) != self.settings.get(key)]
            changed = ", ".join(f"{key} {saved.get(key)}" for key in keys)
            raise EagleEyeError(
                f"{self.folder} holds training with other settings ({changed}); "
                "run with those to go on, or choose another output folder"
            )
        before, now = len(list(place.glob("random_states_*"))), self.accelerator.num_processes
        if before != now:
            self._warn(
                f"{place} was written by {before} processes and goes on in {now}: what is drawn at random, as dropout "
                "and mixing, differs from a run that was not interrupted"
            )
        try:
            self.accelerator.load_state(str(place))
        except (RuntimeError, ValueError, KeyError, OSError) as error:
            first_line = str(error).splitlines()[0]
            raise EagleEyeError(
                f"{place} holds training of another network ({first_line:.200}); choose another output folder"
            ) from error
        return rest["state"]

    def save(self, number: int, state: dict[str, Any]) -> None:
        """Write a checkpoint; older ones go once it is whole.

        Raises:
            EagleEyeError: it can't be written; the last whole one stays. The same in every process.
        """
        if self.folder is None:
            return
        place = self.folder / f"step-{number:09}"
        fresh = place.with_suffix(".new")
        self._attempt(self._remove_stale, main=True)
        self._attempt(lambda: self.accelerator.save_state(str(fresh)))
        self._attempt(lambda: self._finish(fresh, place, state), main=True)

    def _remove_stale(self) -> None:
        assert self.folder is not None
        for stale in self.folder.glob("*.new"):
            shutil.rmtree(stale)

    def _finish(self, fresh: Path, place: Path, state: dict[str, Any]) -> None:
        """Make a checkpoint whole and put it in its place, once it is on the disk."""
        torch.save({"settings": self.settings, "state": state}, fresh / "rest.pt")
        write_manifest(fresh)
        shutil.rmtree(place, ignore_errors=True)
        os.replace(fresh, place)
        sync_path(place.parent)
        for old in self._found()[:-KEPT]:
            shutil.rmtree(old)

    def _attempt(self, write: Callable[[], object], main: bool = False) -> None:
        """Do it, in the main process or in all; all go on together, or none does."""
        message, cause = "", None
        if self.accelerator.is_main_process or not main:
            try:
                write()
            except (OSError, RuntimeError, SafetensorError) as error:  # a full disk has many names
                message, cause = (str(error).strip() or type(error).__name__).splitlines()[0], error
        if self.accelerator.num_processes > 1:
            message = next((told for told in gather_object([message]) if told), "")
        if not message:
            return
        if self.accelerator.is_main_process:
            with suppress(OSError):
                self._remove_stale()
        raise EagleEyeError(
            f"`checkpoint={self.folder}` can't be written any more ({message}); the last checkpoint is whole: "
            "make room and start again with the same command"
        ) from cause

    def _choose(self) -> Path | None:
        """The newest whole checkpoint, the same in every process."""
        assert self.folder is not None
        name = make_in_main(self.accelerator, self._newest_whole)
        return self.folder / name if name else None

    def _newest_whole(self) -> str | None:
        found = self._found()
        for place in reversed(found):
            damage = find_damage(place)
            if damage is None:
                return place.name
            aside = place.with_name(f"damaged-{place.name}")  # else it would count as one of those that stay
            shutil.rmtree(aside, ignore_errors=True)
            try:
                os.replace(place, aside)
            except OSError as error:
                raise EagleEyeError(
                    f"the checkpoint {place} is damaged ({damage}) and can't be put aside: {error}"
                ) from error
            self._warn(f"the checkpoint {place} is damaged ({damage}); it is put aside as {aside.name}")
        if found:
            self._warn(f"{self.folder} holds no whole checkpoint; training starts from the beginning")
        return None

    def _warn(self, text: str) -> None:
        if self.accelerator.is_main_process:
            warn(text)

    def _found(self) -> list[Path]:
        assert self.folder is not None
        return sorted(path for path in self.folder.glob("step-*") if path.suffix != ".new" and path.is_dir())
