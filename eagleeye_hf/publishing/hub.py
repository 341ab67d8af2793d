"""Publishing a checkpoint folder on the Hub."""

from __future__ import annotations

import json
import time
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi

from eagleeye_hf.errors import EagleEyeError
from eagleeye_hf.publishing.card import address_card, check_card
from eagleeye_hf.publishing.config import CARD, CONFIG, WEIGHTS, read_config
from eagleeye_hf.publishing.remote_code import AUTO_MAP, CODE_FILES

FILES = (WEIGHTS, CONFIG, CARD, "search.jsonl", "*.png")
"""What of a folder is published; never anything pickled."""

MESSAGE = "Upload a network pruned with eagleeye_hf"

MADE = "## How it was made\n"
REMOTE_CODE = """Where eagleeye_hf is not installed, with the modeling file of this repo:

```python
from transformers import AutoModelForImageClassification

model = AutoModelForImageClassification.from_pretrained("{repo}", trust_remote_code=True)
```

"""
"""What the card says more, before `MADE`, where code is published."""

ATTEMPTS = 4
"""How often a commit is tried; huggingface_hub itself tries again what comes before it."""


def push_to_hub(
    folder: str | Path,
    repo: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str = MESSAGE,
    remote_code: bool = False,
    token: str | bool | None = None,
) -> str:
    """Publish a folder written by `save_pretrained` as one commit.

    Large files go first and stay on the Hub, and unchanged files are not sent again: the same call after a broken
    connection goes on where it stopped, and after a finished one does nothing.

    Args:
        private: of a new repo; an existing one must agree.
        revision: branch to commit to, made where there is none.
        create_pr: open a pull request instead of committing.
        remote_code: add a modeling file, so that transformers loads the model without this package, for those who
            pass `trust_remote_code=True`.
    Returns:
        Address of the commit or pull request.
    Raises:
        EagleEyeError: the folder is no checkpoint, its card lacks a fact, or the Hub can't be reached or refuses.
    """
    if create_pr and revision:
        raise EagleEyeError(f"`revision={revision}` and `create_pr` exclude each other: pull requests go to main")
    contents = _contents(Path(folder), repo, remote_code)
    api = HfApi(token=token)
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        if private is not None and bool(api.model_info(repo).private) != private:
            raise EagleEyeError(
                f"`repo={repo}` exists and is {'public' if private else 'private'}; change it in its settings on the "
                "Hub, or leave `private` out"
            )
        if revision is not None:
            api.create_branch(repo, branch=revision, exist_ok=True)
        info = _commit(api, repo, contents, revision, create_pr, commit_message)
    except EagleEyeError:
        raise
    except Exception as error:  # each version of huggingface_hub raises its own kinds
        raise EagleEyeError(f"`repo={repo}` could not be written: {_explain(error)}") from error
    return str(info.pr_url or info.commit_url)


def _contents(folder: Path, repo: str, remote_code: bool) -> dict[str, Path | bytes]:
    """Everything to publish, by its name in the repo, after a check that it is whole."""
    read_config(folder)
    if not (folder / WEIGHTS).is_file():
        raise EagleEyeError(f"`folder={folder}` has no {WEIGHTS}; the checkpoint is damaged")
    if not (folder / CARD).is_file():
        raise EagleEyeError(f"`folder={folder}` has no model card ({CARD}); write one with `save_pretrained(card=...)`")
    card = address_card((folder / CARD).read_text(encoding="utf-8"), repo)
    check_card(card, str(folder / CARD))
    contents: dict[str, Path | bytes] = {path.name: path for pattern in FILES for path in sorted(folder.glob(pattern))}
    if remote_code:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        contents |= CODE_FILES
        contents[CONFIG] = json.dumps(config | {"auto_map": AUTO_MAP}, indent=2).encode()
        card = card.replace(MADE, REMOTE_CODE.format(repo=repo) + MADE, 1)
    return contents | {CARD: card.encode()}


def _commit(
    api: HfApi,
    repo: str,
    contents: dict[str, Path | bytes],
    revision: str | None,
    create_pr: bool,
    message: str,
) -> CommitInfo:
    """Commit, and again after a fault that may pass; what had arrived after all is then found unchanged."""
    for attempt in range(ATTEMPTS):
        try:
            return api.create_commit(
                repo,
                [CommitOperationAdd(path_in_repo=name, path_or_fileobj=content) for name, content in contents.items()],
                commit_message=message,
                revision=revision,
                create_pr=create_pr,
            )
        except Exception as error:
            if attempt == ATTEMPTS - 1 or not _may_pass(error, create_pr):
                raise
            time.sleep(2**attempt)
    raise AssertionError("unreachable")


def _may_pass(error: Exception, create_pr: bool) -> bool:
    """Whether the commit is worth another try; a pull request is not, where the first may have been opened."""
    status = _status(error)
    if status in (412, 429, 503):  # somebody else's commit came first, or the Hub is busy: nothing was done
        return True
    broken = status is None and not isinstance(error, (ValueError, TypeError, RuntimeError))
    return not create_pr and (broken or status in (500, 502, 504))


def _status(error: BaseException) -> int | None:
    """The HTTP status behind an error, if there was an answer at all."""
    cause: BaseException | None = error
    while cause is not None:
        if (response := getattr(cause, "response", None)) is not None:
            return response.status_code
        cause = cause.__cause__
    return None


def _explain(error: BaseException) -> str:
    """One line: what happened, and what helps."""
    status = _status(error)
    if status is None:
        while error.__cause__ is not None:
            error = error.__cause__
    what = (" ".join(str(error).split())[:300] or type(error).__name__).rstrip(".")
    if status in (401, 403, 404):
        return f"{what}. Log in with `hf auth login`, or give a `token` that may write there."
    if not isinstance(error, (ValueError, TypeError)) and (status is None or status == 429 or status >= 500):
        return f"{what}. What was sent is not lost: run the same again to go on."
    return what
