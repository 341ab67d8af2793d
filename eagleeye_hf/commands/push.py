"""`eagleeye push`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated

from tyro.conf import arg

from eagleeye_hf.commands.printing import PrintConfig
from eagleeye_hf.configs import check_fields
from eagleeye_hf.runs.config import HubConfig


@dataclass(frozen=True, kw_only=True)
class Config:
    checkpoint: Annotated[str, arg(metavar="CHECKPOINT")]
    """Folder with a checkpoint and its model card."""
    repo: Annotated[str, arg(metavar="REPO")]
    """USER/REPO on the Hub, made where there is none."""
    hub: HubConfig = HubConfig()
    revision: str | None = None
    """Branch to commit to."""
    create_pr: bool = False
    """Open a pull request instead of committing."""
    commit_message: str | None = None
    """Message of the commit."""
    license: str | None = None
    """Of the result, for the card, where that tells none: mit, apache-2.0..."""
    printing: PrintConfig = PrintConfig()

    def __post_init__(self) -> None:
        check_fields(self)


def run(config: Config) -> None:
    """Publish a checkpoint on the Hub; after a broken connection the same command goes on."""
    from eagleeye_hf.publishing.hub import MESSAGE, push_to_hub

    url = push_to_hub(
        config.checkpoint,
        config.repo,
        private=config.hub.private or None,
        revision=config.revision,
        create_pr=config.create_pr,
        commit_message=config.commit_message or MESSAGE,
        remote_code=config.hub.remote_code,
        license=config.license,
    )
    print(json.dumps({"url": url}) if config.printing.json else f"published: {url}")
