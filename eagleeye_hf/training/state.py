"""Checkpoints of training: written beside their place and renamed, the last few kept."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError

from eagleeye_hf.errors import EagleEyeError
from eagleeye_hf.training.config import FinetuneConfig

KEPT = 2
"""Checkpoints that stay."""
SIZE = 5
"""Bytes of a checkpoint per byte of the model: weights, two moments of the optimizer, EMA, the best epoch's weights."""
FREE_TO_CHANGE = {"save_steps", "tracker", "compile", "accumulation"}
"""Settings that another start may have different."""
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
        self.settings |= identity or {}

    def prepare(self, model_bytes: int) -> None:
        """Make the folder, and see that it can hold what will come.

        Raises:
            EagleEyeError: it can't be written, or the disk is too full.
        """
        if self.folder is None:
            return
        make_folder(self.folder, "checkpoint")
        held = sum(file.stat().st_size for place in self._found() for file in place.iterdir())
        needed = SIZE * (KEPT + 1) * model_bytes - held
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise EagleEyeError(
                f"`checkpoint={self.folder}`: checkpoints need about {needed / 1e6:,.0f} MB, and the disk has "
                f"{free / 1e6:,.0f} MB free; free some, or choose another folder"
            )

    def load(self) -> dict[str, Any] | None:
        """Restore model, optimizer, scaler and random states from the newest checkpoint; returns the rest."""
        found = self._found() if self.folder is not None else []
        if not found:
            return None
        rest = torch.load(found[-1] / "rest.pt", map_location="cpu", weights_only=True)
        if rest["settings"] != self.settings:
            keys = [key for key in self.settings if rest["settings"].get(key) != self.settings[key]]
            changed = ", ".join(f"{key} {rest['settings'].get(key)}" for key in keys)
            raise EagleEyeError(
                f"{self.folder} holds training with other settings ({changed}); "
                "run with those to go on, or choose another output folder"
            )
        self.accelerator.load_state(str(found[-1]))
        return rest["state"]

    def save(self, number: int, state: dict[str, Any]) -> None:
        """Write a checkpoint; older ones go once it is whole.

        Raises:
            EagleEyeError: it can't be written; the last whole one stays.
        """
        if self.folder is None:
            return
        place = self.folder / f"step-{number:09}"
        fresh = place.with_suffix(".new")
        try:
            if self.accelerator.is_main_process:
                for stale in self.folder.glob("*.new"):
                    shutil.rmtree(stale)
            self.accelerator.wait_for_everyone()
            self.accelerator.save_state(str(fresh))
            if self.accelerator.is_main_process:
                torch.save({"settings": self.settings, "state": state}, fresh / "rest.pt")
            self.accelerator.wait_for_everyone()
            if self.accelerator.is_main_process:
                shutil.rmtree(place, ignore_errors=True)
                os.replace(fresh, place)
                for old in self._found()[:-KEPT]:
                    shutil.rmtree(old)
        except (
            OSError,
            RuntimeError,
            SafetensorError,
        ) as error:  # a full disk has many names
            if self.accelerator.is_main_process:
                shutil.rmtree(fresh, ignore_errors=True)
            raise EagleEyeError(
                f"`checkpoint={self.folder}` can't be written any more ({error}); the last checkpoint is whole: "
                "make room and start again with the same command"
            ) from error
        self.accelerator.wait_for_everyone()

    def _found(self) -> list[Path]:
        assert self.folder is not None
        return sorted(path for path in self.folder.glob("step-*") if path.suffix != ".new")
