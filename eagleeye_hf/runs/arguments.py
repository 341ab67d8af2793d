"""From a command line to a config, and from an error to an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import field
from typing import Any, TypeVar

from accelerate import PartialState
from torch import distributed
from transformers import HfArgumentParser

from eagleeye_hf.errors import EagleEyeError

Config = TypeVar("Config")


def flag(default: Any, text: str) -> Any:
    """A dataclass field that is a command line flag with this help text."""
    return field(default=default, metadata={"help": text})


def parse_config(
    config_class: type[Config],
    arguments: Sequence[str] | None,
    description: str | None,
    prog: str | None = None,
    positional: Sequence[str] = (),
) -> Config:
    """Fill a dataclass from flags; the fields named in `positional` are given without one.

    `--help` and malformed values end the program as argparse does.

    Raises:
        EagleEyeError: there are unknown flags.
    """
    parser = HfArgumentParser(config_class, description=description, prog=prog)
    for name in positional:
        _make_positional(parser, name)
    config, unknown = parser.parse_args_into_dataclasses(
        None if arguments is None else list(arguments), return_remaining_strings=True, look_for_args_file=False
    )
    if unknown:
        raise EagleEyeError(f"unknown arguments: {' '.join(unknown)}; see --help")
    return config


def _make_positional(parser: HfArgumentParser, name: str) -> None:
    action = parser._option_string_actions[f"--{name}"]
    for option in action.option_strings:
        del parser._option_string_actions[option]
    action.option_strings, action.metavar = [], name.upper()


def leave_processes() -> None:
    """End the connection between the processes of a run together: one that just exits can abort those still talking."""
    if distributed.is_available() and distributed.is_initialized():
        state = PartialState()
        state.wait_for_everyone()
        state.destroy_process_group()


def run_main(main: Callable[[Any], Any], parse: Callable[[], Any]) -> int:
    """Run and return the exit code: bad input is one line on the error stream and code 2."""
    try:
        main(parse())
        leave_processes()
    except EagleEyeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has seen enough
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    return 0
