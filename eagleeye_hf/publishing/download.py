"""A checkpoint's files from the Hub, or from its cache where the Hub can't be reached."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import hf_hub_download

from eagleeye_hf.errors import EagleEyeError
from eagleeye_hf.publishing.config import CONFIG, WEIGHTS, read_config


def download_checkpoint(
    repo: str, revision: str | None, token: str | bool | None, cache_dir: str | Path | None
) -> Path:
    """The folder of one commit, with `config.json` and the weights; the weights come after a check of the config.

    Raises:
        EagleEyeError: the repo, the revision or a file is missing, or can't be read with this token or connection.
    """
    folder = download_config(repo, revision, token, cache_dir)
    commit = folder.name  # the same, should the branch have moved on
    return _fetch(repo, WEIGHTS, commit, token, cache_dir).parent


def download_config(
    repo: str, revision: str | None = None, token: str | bool | None = None, cache_dir: str | Path | None = None
) -> Path:
    """The folder of one commit, with a checked `config.json`.

    Raises:
        EagleEyeError: as above, or the config is none of ours.
    """
    folder = _fetch(repo, CONFIG, revision, token, cache_dir).parent
    read_config(folder)
    return folder


def _fetch(repo: str, name: str, revision: str | None, token: str | bool | None, cache_dir: str | Path | None) -> Path:
    try:
        return Path(hf_hub_download(repo, name, revision=revision, token=token, cache_dir=cache_dir))
    except Exception as error:  # each version of huggingface_hub raises its own kinds
        at = f" at `revision={revision}`" if revision else ""
        raise EagleEyeError(
            f"`path_or_repo={repo}`{at} is neither a folder nor a Hub repo that can be read "
            f"({type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]})"
        ) from error
