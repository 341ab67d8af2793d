"""A checkpoint's files from the Hub, or from its cache where the Hub can't be reached."""

from __future__ import annotations

import errno
from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import FileMetadataError, HFValidationError, OfflineModeIsEnabled

from eagleeye_hf.errors import EagleEyeError
from eagleeye_hf.publishing.config import CONFIG, WEIGHTS, read_config
from eagleeye_hf.publishing.retrying import BROKEN, BUSY, describe_cause, find_causes, find_status, retry_call

ATTEMPTS = 3
"""How often a file is asked for; the client asks again itself, in some versions."""
LASTING = HFValidationError, OfflineModeIsEnabled, FileMetadataError
LOCAL = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EMFILE}


def download_checkpoint(
    repo: str, revision: str | None, token: str | bool | None, cache_dir: str | Path | None
) -> Path:
    """The folder of one commit, with `config.json` and the weights; the weights come after a check of the config.

    Raises:
        EagleEyeError: the repo, the revision or a file is missing, or can't be read with this token or connection.
    """
    folder = download_config(repo, revision, token, cache_dir)
    commit = folder.name  # the same, should the branch have moved on
    return download_weights(repo, commit, token, cache_dir)


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


def download_weights(
    repo: str, revision: str | None = None, token: str | bool | None = None, cache_dir: str | Path | None = None
) -> Path:
    """The folder of one commit, with the weights."""
    return _fetch(repo, WEIGHTS, revision, token, cache_dir).parent


def _fetch(repo: str, name: str, revision: str | None, token: str | bool | None, cache_dir: str | Path | None) -> Path:
    def fetch() -> Path:
        return Path(hf_hub_download(repo, name, revision=revision, token=token, cache_dir=cache_dir))

    try:
        return retry_call(fetch, _may_pass, ATTEMPTS)
    except Exception as error:  # each version of huggingface_hub raises its own kinds
        at = f" at `revision={revision}`" if revision else ""
        raise EagleEyeError(
            f"`path_or_repo={repo}`{at} is neither a folder nor a Hub repo that can be read "
            f"({type(error).__name__}: {describe_cause(error)})"
        ) from error


def _may_pass(error: Exception) -> bool:
    """Whether a download is worth another try: where the Hub had a bad minute, or the connection was cut."""
    status = find_status(error)
    if status is not None:
        return status in (*BUSY, *BROKEN)
    causes = find_causes(error)
    return any(map(_is_cut, causes)) and not any(isinstance(cause, LASTING) or _is_local(cause) for cause in causes)


def _is_cut(error: BaseException) -> bool:
    """Whether a connection broke that had been there: an error of the HTTP client, or of what it read too little of."""
    of_client = type(error).__module__.split(".")[0].rstrip("0123456789x") == "http"
    return (of_client and not type(error).__name__.startswith(("Connect", "Proxy"))) or (
        isinstance(error, (ConnectionResetError, ConnectionAbortedError, BrokenPipeError, TimeoutError))
        or (isinstance(error, OSError) and "Consistency check failed" in str(error))
    )


def _is_local(error: BaseException) -> bool:
    """Whether this machine's disk is at fault."""
    return isinstance(error, OSError) and error.errno in LOCAL
