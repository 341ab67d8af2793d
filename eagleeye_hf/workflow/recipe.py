"""What every recipe does around its body: arguments, threads, seed, a free output folder, exit codes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from accelerate.utils import set_seed

from eagleeye_hf.arguments import parse_config, run_main
from eagleeye_hf.errors import EagleEyeError
from eagleeye_hf.publishing.checkpoint import check_free
from eagleeye_hf.workflow.config import RunConfig

RUN_FILES = {"search", "strategy", "training", "logs", "result"}
"""What an unfinished run may have left in its folder, without endings."""

Config = TypeVar("Config", bound=RunConfig)


def run_recipe(main: Callable[[Config], None], config_class: type[Config]) -> None:
    """Parse the command line into a config and run; bad input ends with one line and exit code 2."""

    def start(config: Config) -> None:
        _use_all_cores()
        prepare_output(config.output)  # before anything takes time
        set_seed(config.seed)
        main(config)

    sys.exit(run_main(start, lambda: parse_config(config_class, None, main.__doc__)))


def _use_all_cores() -> None:
    """On a CPU, `accelerate launch` leaves one thread to each process; share all cores out instead."""
    if not torch.cuda.is_available():
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def prepare_output(output: str) -> Path:
    """The run's folder: new, empty, or one that the same run left unfinished."""
    folder = Path(output)
    check_free(folder)
    found = folder.iterdir() if folder.is_dir() else ()
    strange = [path.name for path in found if path.stem.removesuffix("-base") not in RUN_FILES]
    if strange:
        raise EagleEyeError(
            f"`output={folder}` is not empty (it holds {', '.join(strange[:3])}); choose another folder"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".writable").touch()
        (folder / ".writable").unlink()
    except OSError as error:
        raise EagleEyeError(f"`output={folder}` can't be written: {error}") from error
    return folder
