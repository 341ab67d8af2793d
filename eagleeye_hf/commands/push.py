"""`eagleeye push`."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from eagleeye_hf.publishing.hub import MESSAGE, push_to_hub
from eagleeye_hf.runs.arguments import flag

POSITIONAL = ("checkpoint", "repo")


@dataclass(frozen=True, kw_only=True)
class Config:
    checkpoint: str = field(metadata={"help": "folder with a checkpoint and its model card"})
    repo: str = field(metadata={"help": "USER/REPO on the Hub, made where there is none"})
    private: bool = flag(False, "make a new repo private")
    revision: str | None = flag(None, "branch to commit to")
    create_pr: bool = flag(False, "open a pull request instead of committing")
    commit_message: str = flag(MESSAGE, "message of the commit")
    remote_code: bool = flag(False, "add a modeling file, so that transformers loads it without eagleeye_hf")
    json: bool = flag(False, "print JSON")


def run(config: Config) -> None:
    """Publish a checkpoint on the Hub; after a broken connection the same command goes on."""
    url = push_to_hub(
        config.checkpoint,
        config.repo,
        private=config.private or None,
        revision=config.revision,
        create_pr=config.create_pr,
        commit_message=config.commit_message,
        remote_code=config.remote_code,
    )
    print(json.dumps({"url": url}) if config.json else f"published: {url}")
