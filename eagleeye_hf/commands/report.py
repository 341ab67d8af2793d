"""`eagleeye report`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

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
    from eagleeye_hf.commands.search import FRONT_PICTURE
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
    facts = describe_search(record, *_told_run(journal if journal.is_dir() else journal.parent))
    pictures = draw_search(record, folder)
    front = (journal if journal.is_dir() else journal.parent) / FRONT_PICTURE
    pictures = {"front": front, **pictures} if front.is_file() else pictures
    page = write_page(facts, pictures, folder / "search.html")
    paths = {name: str(path) for name, path in pictures.items()} | {"page": str(page)}
    print(json.dumps(paths) if config.printing.json else "\n".join(paths.values()))


def _told_run(folder: Path) -> tuple[dict[str, Any], str]:
    """The settings of the run whose journal it is, and its command; nothing where there is none."""
    import yaml

    from eagleeye_hf.runs.arguments import RUN_FILE
    from eagleeye_hf.runs.folder import read_record

    record, file = read_record(folder), folder / RUN_FILE
    if record is None or not file.is_file():
        return {}, "search"
    try:
        settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):  # a page can do without
        return {}, "search"
    return (settings if isinstance(settings, dict) else {}), str(record["job"])
