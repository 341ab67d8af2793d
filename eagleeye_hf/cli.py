"""The `eagleeye` command: arguments in, one call, a readable result out. Only commands that run import PyTorch."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Any

from eagleeye_hf import __version__
from eagleeye_hf.runs.arguments import parse_config, run_main

COMMANDS = {
    "quickstart": "the whole method in two to three minutes, without network: handwritten digits, half the MACs",
    "compress": "the whole job: search, prune, fine-tune, measure, save, publish",
    "inspect": "show the channel groups of a network: what can go, what it costs, what stays and why",
    "search": "find the best thin versions of a trained network under one or several budgets",
    "prune": "apply a strategy: slice, recompute BatchNorm statistics, save",
    "compare": "checkpoints side by side: top-1, milliseconds in every runtime at hand, MACs, parameters, file size",
    "study": "check the method on your own data: which score foretells the accuracy after fine-tuning",
    "report": "draw what a search found, as PNG files and one HTML page",
    "finetune": "train a pruned network further, on the labels and on a teacher's outputs",
    "evaluate": "measure top-1, top-5 and cross-entropy on a dataset's test images",
    "export": "write a network as ONNX, in 8-bit integers if wanted, or as a program of torch.export",
    "push": "publish a checkpoint with its model card on the Hub",
}
"""Each is a module of `eagleeye_hf.commands` with a `Config` and `run(config)`, imported when it is called."""

USAGE = "usage: eagleeye COMMAND [--help] ...\n\nMakes a trained CNN faster, with EagleEye.\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    name, *rest = (sys.argv[1:] if arguments is None else list(arguments)) or ["--help"]
    if name == "--version":
        print(f"eagleeye_hf {__version__}")
        return 0
    if name in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        print(USAGE, *(f"  {command:{width}}  {text}" for command, text in COMMANDS.items()), sep="\n")
        return 0
    if name not in COMMANDS:
        print(f"error: there is no command {name!r}; choose one of {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    command = importlib.import_module(f"eagleeye_hf.commands.{name}")

    def parse() -> Any:
        return parse_config(command.Config, rest, command.run.__doc__, f"eagleeye {name}")

    return run_main(command.run, parse)


if __name__ == "__main__":
    sys.exit(main())
