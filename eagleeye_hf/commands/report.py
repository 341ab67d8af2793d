"""`eagleeye report`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from eagleeye_hf.commands.printing import PrintConfig
from eagleeye_hf.configs import check_fields
from eagleeye_hf.errors import EagleEyeError


@dataclass(frozen=True, kw_only=True)
class Config:
    journal: Annotated[str, arg(metavar="JOURNAL")]
    """search.jsonl of a search, finished or under way, or its folder."""
    output: str | None = None
    """Folder for the pictures and search.html, instead of the journal's."""
    printing: PrintConfig = PrintConfig()

    def __post_init__(self) -> None:
        check_fields(self)


def run(config: Config) -> None:
    """Draw what a search found: scores against costs, widths of the leaders, what each layer's ratios did."""
    from eagleeye_hf.reports.search_page import describe_search, write_page
    from eagleeye_hf.runs.folder import RunFolder
    from eagleeye_hf.search.reading import read_journal
    from eagleeye_hf.training.state import make_folder

    record = read_journal(Path(config.journal))
    journal = Path(config.journal)
    folder = Path(config.output) if config.output else (journal if journal.is_dir() else journal.parent)
    try:
        from eagleeye_hf.reports.search_plots import PICTURES, draw_search
    except ImportError as error:
        raise EagleEyeError("`report` needs matplotlib; install it with: pip install eagleeye-hf[plots]") from error
    make_folder(folder, "output")
    RunFolder(folder, "report").claim("search.html", *PICTURES)
    facts = describe_search(record)
    pictures = draw_search(record, folder)
    page = write_page(facts, pictures, folder / "search.html")
    paths = {name: str(path) for name, path in pictures.items()} | {"page": str(page)}
    print(json.dumps(paths) if config.printing.json else "\n".join(paths.values()))
