"""Publishing a checkpoint folder on the Hub."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from eagleeye_hf.errors import EagleEyeError
from eagleeye_hf.publishing.config import CARD, read_config

FILES = ("model.safetensors", "config.json", "README.md", "search.jsonl", "*.png")


def push_to_hub(
    folder: str | Path,
    repo: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str = "Upload a network pruned with eagleeye_hf",
    token: str | bool | None = None,
) -> str:
    """Upload a folder written by `save_pretrained`; unchanged files are not sent again.

    Returns:
        Address of the commit or pull request.
    Raises:
        EagleEyeError: the folder is no checkpoint, has no card, or the Hub refuses.
    """
    folder = Path(folder)
    read_config(folder)
    if not (folder / CARD).is_file():
        raise EagleEyeError(f"`folder={folder}` has no model card ({CARD}); write one with `save_pretrained(card=...)`")
    api = HfApi(token=token)
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        if revision is not None and not create_pr:
            api.create_branch(repo, branch=revision, exist_ok=True)
        return str(
            api.upload_folder(
                folder_path=folder,
                repo_id=repo,
                allow_patterns=list(FILES),
                revision=revision,
                create_pr=create_pr,
                commit_message=commit_message,
            )
        )
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise EagleEyeError(
            f"`repo={repo}` could not be written ({type(error).__name__}: {str(error).strip().splitlines()[0]})"
        ) from error
