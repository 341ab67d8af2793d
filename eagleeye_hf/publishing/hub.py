"""Publishing a checkpoint folder on the Hub."""

from __future__ import annotations

import json
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError

from eagleeye_hf.errors import EagleEyeError
from eagleeye_hf.publishing.card import check_card
from eagleeye_hf.publishing.config import CARD, CONFIG, WEIGHTS, read_config
from eagleeye_hf.publishing.remote_code import AUTO_MAP, CODE_FILE, modeling_code

FILES = (WEIGHTS, CONFIG, CARD, "search.jsonl", "*.png")
"""What of a folder is published; never anything pickled."""

RACES = 5
"""How often a commit is tried again when somebody else's came first."""


def push_to_hub(
    folder: str | Path,
    repo: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str = "Upload a network pruned with eagleeye_hf",
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
    folder = Path(folder)
    config = read_config(folder)
    if not (folder / WEIGHTS).is_file():
        raise EagleEyeError(f"`folder={folder}` has no {WEIGHTS}; the checkpoint is damaged")
    if not (folder / CARD).is_file():
        raise EagleEyeError(f"`folder={folder}` has no model card ({CARD}); write one with `save_pretrained(card=...)`")
    check_card((folder / CARD).read_text(encoding="utf-8"), str(folder / CARD))
    if create_pr and revision:
        raise EagleEyeError(f"`revision={revision}` and `create_pr` exclude each other: pull requests go to main")
    contents: dict[str, Path | bytes] = {path.name: path for pattern in FILES for path in sorted(folder.glob(pattern))}
    if remote_code:
        contents[CODE_FILE] = modeling_code(config["model_args"]["base"]).encode()
        contents[CONFIG] = json.dumps(_raw_config(folder) | {"auto_map": AUTO_MAP}, indent=2).encode()
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


def _raw_config(folder: Path) -> dict[str, object]:
    return json.loads((folder / CONFIG).read_text(encoding="utf-8"))


def _commit(
    api: HfApi,
    repo: str,
    contents: dict[str, Path | bytes],
    revision: str | None,
    create_pr: bool,
    message: str,
) -> CommitInfo:
    for attempt in range(RACES):
        try:
            return api.create_commit(
                repo,
                [CommitOperationAdd(path_in_repo=name, path_or_fileobj=content) for name, content in contents.items()],
                commit_message=message,
                revision=revision,
                create_pr=create_pr,
            )
        except HfHubHTTPError as error:
            if error.response is None or error.response.status_code != 412 or attempt == RACES - 1:
                raise
    raise AssertionError("unreachable")


def _explain(error: BaseException) -> str:
    """One line: what happened, and what helps."""
    causes = [error]
    while (cause := causes[-1].__cause__) is not None:
        causes.append(cause)
    response = next((r for e in causes if (r := getattr(e, "response", None)) is not None), None)
    status = getattr(response, "status_code", None)
    lines = [line.strip() for line in str(causes[-1] if status is None else error).splitlines() if line.strip()]
    what = " ".join(lines)[:300] or type(error).__name__
    if status in (401, 403, 404):
        return f"{what} Log in with `hf auth login`, or give a `token` that may write there."
    if status is None or status == 429 or status >= 500:
        return f"{what} What was sent is not lost: run the same again to go on."
    return what
