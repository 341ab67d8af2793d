"""What every recipe does around its body: arguments, threads, seed, a free output folder, exit codes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from accelerate.utils import set_seed

from eagleeye_hf.errors import EagleEyeError
from eagleeye_hf.publishing.config import CARD, CONFIG, WEIGHTS
from eagleeye_hf.runs.arguments import parse_config, run_main
from eagleeye_hf.runs.config import CORES, RunConfig
from eagleeye_hf.training.state import PROBE, make_folder

RUN_FILES = {"search", "strategy", "training", "logs", "result"}
"""What an unfinished run may have left in its folder, without endings."""
HALF_SAVED = [WEIGHTS, CARD, *(f"{name}.tmp" for name in (WEIGHTS, CARD, CONFIG))]
"""What is there beside them where it was killed while it saved its result, without `config.json`, which comes last."""

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
        torch.set_num_threads(max(1, CORES // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def prepare_output(output: str) -> Path:
    """The run's folder: new, empty, or one that the same run left unfinished."""
    folder = Path(output)
    if (folder / CONFIG).exists():
        raise EagleEyeError(
            f"`output={folder}` holds a checkpoint already; publish it with `eagleeye push`, or choose another folder"
        )
    found = [path for path in folder.iterdir() if not path.name.startswith(PROBE)] if folder.is_dir() else []
    own = [path for path in found if path.stem.removesuffix("-base") in RUN_FILES]
    if own:
        for name in HALF_SAVED:
            (folder / name).unlink(missing_ok=True)
    strange = [path.name for path in found if path not in own and not (own and path.name in HALF_SAVED)]
    if strange:
        raise EagleEyeError(
            f"`output={folder}` is not empty (it holds {', '.join(strange[:3])}); choose another folder"
        )
    make_folder(folder, "output")
    return folder
