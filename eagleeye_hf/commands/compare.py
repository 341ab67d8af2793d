"""`eagleeye compare`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from eagleeye_hf.commands.printing import PrintConfig
from eagleeye_hf.configs import check_fields
from eagleeye_hf.data.config import DatasetConfig
from eagleeye_hf.errors import EagleEyeError
from eagleeye_hf.runtimes.config import LatencyConfig


@dataclass(frozen=True, kw_only=True)
class Config:
    models: Annotated[tuple[str, ...], arg(metavar="MODEL [MODEL ...]")]
    """Checkpoint folders, hf-hub:USER/REPO, or timm names; the first is what the others are compared with, and the full
    network goes before them where the first is a pruned one."""
    weights: str | None = None
    """File with the weights of the networks given by a timm name, instead of those of the Hub."""
    data: DatasetConfig = DatasetConfig()
    split: str | None = None
    """Split to measure top-1 on; by default validation, test, val, valid, dev or eval, or the only one."""
    costs_only: bool = False
    """Leave out top-1, so that no dataset is needed."""
    measuring: LatencyConfig = LatencyConfig()
    printing: PrintConfig = PrintConfig()
    output: str | None = None
    """PNG file for a picture of accuracy against milliseconds."""

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.models:
            raise EagleEyeError("`MODEL` must be given, one or several; see --help")
        if self.output is not None and not self.output.endswith(".png"):
            raise EagleEyeError(f"`output={self.output}` has to end in .png")


def run(config: Config) -> None:
    """Put networks side by side: top-1, milliseconds in every runtime at hand, MACs, parameters, file size."""
    from eagleeye_hf.runs.compare import compare_models, open_entries
    from eagleeye_hf.runs.front import format_front

    if config.output is not None and Path(config.output).exists():
        raise EagleEyeError(f"`output={config.output}` exists; choose another file, or move it away")
    entries = open_entries(config.models, config.weights)
    front = compare_models(entries, None if config.costs_only else config.data, config.split, config.measuring)
    print(json.dumps(front.to_dict()) if config.printing.json else format_front(front))
    if config.output is not None:
        try:
            from eagleeye_hf.reports.front import draw_front
        except ImportError as error:
            raise EagleEyeError("`output` needs matplotlib; install it with: pip install eagleeye-hf[plots]") from error
        draw_front(front.to_dict(), Path(config.output))
