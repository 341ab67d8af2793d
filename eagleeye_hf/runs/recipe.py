"""What every recipe does around its body: arguments, threads, seed, a free output folder, exit codes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from accelerate.utils import set_seed

from eagleeye_hf.data.config import SHARE
from eagleeye_hf.runs.arguments import parse_config, run_main
from eagleeye_hf.runs.config import RunConfig
from eagleeye_hf.runs.folder import check_output

Config = TypeVar("Config", bound=RunConfig)


def run_recipe(main: Callable[[Config], None], config_class: type[Config]) -> None:
    """Parse the command line into a config and run; bad input ends with one line and exit code 2."""

    def start(config: Config) -> None:
        use_all_cores()
        check_output(config.output, "compress")  # before anything takes time
        set_seed(config.seed)
        main(config)

    def parse() -> Config:
        return parse_config(config_class, sys.argv[1:], main.__doc__ or "", Path(sys.argv[0]).name)

    sys.exit(run_main(start, parse))


def use_all_cores() -> None:
    """`accelerate launch` leaves one thread to each process; divide all cores among them instead. Beside a GPU, too:
    they rank channels, and run what is measured on the CPU."""
    torch.set_num_threads(SHARE)
