"""Publishing a checkpoint folder on the Hub."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi
from huggingface_hub.utils import validate_repo_id
from torch import nn

from eagleeye_hf.errors import EagleEyeError
from eagleeye_hf.publishing.card_checks import address_card, check_card, license_card
from eagleeye_hf.publishing.checkpoint import open_checkpoint
from eagleeye_hf.publishing.config import CARD, CONFIG, WEIGHTS
from eagleeye_hf.publishing.remote_code import AUTO_MAP, CODE_FILES
from eagleeye_hf.publishing.retrying import BROKEN, BUSY, describe_cause, find_status, retry_call

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


def push_to_hub(
    folder: str | Path,
    repo: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str = MESSAGE,
    remote_code: bool = False,
    license: str | None = None,
    token: str | bool | None = None,
    builder: Callable[[], nn.Module] | None = None,
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
        license: for the card's metadata, where the card tells none.
        builder: of a network of your own, as for `from_pretrained`.
    Returns:
        Address of the commit or pull request.
    Raises:
        EagleEyeError: the folder is no checkpoint or a damaged one, its card lacks a fact, or the Hub can't be reached
            or refuses.
    """
    if create_pr and revision:
        raise EagleEyeError(f"`revision={revision}` and `create_pr` exclude each other: pull requests go to main")
    check_repo(repo)
    contents = _contents(Path(folder), repo, remote_code, license, builder)
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


def check_repo(repo: str, argument: str = "repo") -> None:
    """Refuse what can't be the name of a repo, before anything is sent."""
    try:
        validate_repo_id(repo)
    except ValueError as error:
        told = " ".join(str(error).split())
        raise EagleEyeError(f"`{argument}={repo}` is no name of a Hub repo: {told}") from error
    if "/" not in repo:
        raise EagleEyeError(f"`{argument}={repo}` has to be USER/REPO or ORGANIZATION/REPO")


def _contents(
    folder: Path, repo: str, remote_code: bool, license: str | None, builder: Callable[[], nn.Module] | None
) -> dict[str, Path | bytes]:
    """Everything to publish, by its name in the repo, after a check that it is whole."""
    open_checkpoint(folder, builder)
    if not (folder / CARD).is_file():
        raise EagleEyeError(f"`folder={folder}` has no model card ({CARD}); write one with `save_pretrained(card=...)`")
    try:
        text = (folder / CARD).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise EagleEyeError(f"{folder / CARD} can't be read as UTF-8: {error}") from error
    card = license_card(address_card(text, repo), license) if license else address_card(text, repo)
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

    def commit() -> CommitInfo:
        return api.create_commit(
            repo,
            [CommitOperationAdd(path_in_repo=name, path_or_fileobj=content) for name, content in contents.items()],
            commit_message=message,
            revision=revision,
            create_pr=create_pr,
        )

    def may_pass(error: Exception) -> bool:
        """A pull request is not worth another try where the first may have been opened."""
        status = find_status(error)
        broken = status is None and not isinstance(error, (ValueError, TypeError, RuntimeError))
        return status in BUSY or (not create_pr and (broken or status in BROKEN))

    return retry_call(commit, may_pass)


def _explain(error: BaseException) -> str:
    """One line: what happened, and what helps."""
    status, what = find_status(error), describe_cause(error)
    if status in (401, 403, 404):
        return f"{what}. Log in with `hf auth login`, or give a `token` that may write there."
    if not isinstance(error, (ValueError, TypeError)) and (status is None or status == 429 or status >= 500):
        return f"{what}. What was sent is not lost: run the same again to go on."
    return what
