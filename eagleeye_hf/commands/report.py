"""`eagleeye report`."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from eagleeye_hf.errors import EagleEyeError
from eagleeye_hf.reports.search_page import write_page
from eagleeye_hf.runs.arguments import flag
from eagleeye_hf.search.reading import read_journal

POSITIONAL = ("journal",)


@dataclass(frozen=True, kw_only=True)
class Config:
    journal: str = field(metadata={"help": "search.jsonl of a search, finished or under way, or its folder"})
    output: str | None = flag(None, "folder for the pictures and search.html, instead of the journal's")
    json: bool = flag(False, "print the paths as JSON")


def run(config: Config) -> None:
    """Draw what a search found: scores against costs, widths of the leaders, what each layer's ratios did."""
    record = read_journal(Path(config.journal))
    journal = Path(config.journal)
    folder = Path(config.output) if config.output else (journal if journal.is_dir() else journal.parent)
    try:
        from eagleeye_hf.reports.search_plots import draw_search
    except ImportError as error:
        raise EagleEyeError("`report` needs matplotlib; install it with: pip install eagleeye-hf[plots]") from error
    try:
        pictures = draw_search(record, folder)
        page = write_page(record, pictures, folder / "search.html")
    except OSError as error:
        raise EagleEyeError(f"`output={folder}` can't be written: {error}") from error
    paths = {name: str(path) for name, path in pictures.items()} | {"page": str(page)}
    print(json.dumps(paths) if config.json else "\n".join(paths.values()))
