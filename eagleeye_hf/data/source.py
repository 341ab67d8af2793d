"""Opening a dataset: from the Hub, parquet, image folders or webdataset tars."""

from __future__ import annotations

import difflib
import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import datasets
from huggingface_hub import HfApi
from huggingface_hub.utils import HFValidationError, validate_repo_id

from eagleeye_hf.data.rows import describe, is_network_fault
from eagleeye_hf.errors import EagleEyeError
from eagleeye_hf.processes import main_process_works

if TYPE_CHECKING:
    from accelerate import Accelerator

TEXTS = ("string", "large_string")
FULL = {errno.ENOSPC, errno.EDQUOT}
FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR}


TABLES = {".csv": "csv", ".tsv": "csv", ".parquet": "parquet", ".json": "json", ".jsonl": "json"}
"""Files that are a dataset by themselves, and what `datasets` reads them with."""
PATH_NAMES = ("image", "img", "file_name", "filename", "filepath", "file_path", "image_path", "path", "file", "name")
"""Names of a column of files of images, the likeliest first."""
TRIED = 20
"""Rows of such a column of which one file has to be there."""


@dataclass(frozen=True, kw_only=True)
class OpenedDataset:
    """All splits of a dataset."""

    splits: Any
    name: str
    """Hub name, or path."""
    commit: str | None = None
    """Of a dataset on the Hub."""


Source: TypeAlias = str | Path | datasets.DatasetDict | datasets.IterableDatasetDict | OpenedDataset


def open_source(
    dataset: str | Path,
    config: str | None = None,
    revision: str | None = None,
    streaming: bool | None = None,
    name: str | None = None,
) -> OpenedDataset:
    """Open what a user names: a dataset on the Hub, a folder, or a file.

    Raises:
        EagleEyeError: it can't be opened, and why.
    """
    check_location(dataset)
    commit = find_commit(dataset, revision)
    splits = open_dataset(dataset, config, commit, streaming)
    if Path(dataset).exists():
        splits = {split: find_image_files(str(dataset), rows) for split, rows in splits.items()}
    return OpenedDataset(splits=splits, name=name or str(dataset), commit=commit)


def is_image(feature: Any) -> bool:
    """Whether a column holds images."""
    return isinstance(feature, datasets.Image) or (isinstance(feature, dict) and set(feature) == {"bytes", "path"})


def find_image_files(dataset: str, rows: Any) -> Any:
    """A table that names files of images, with these as its images; other datasets as they are.

    Raises:
        EagleEyeError: none of the first files is there.
    """
    features = rows.features or {}
    if not isinstance(rows, datasets.Dataset) or not len(rows) or any(map(is_image, features.values())):
        return rows
    texts = [key for key in PATH_NAMES if getattr(features.get(key), "dtype", None) in TEXTS]
    if not texts:
        return rows
    column, folder = texts[0], Path(dataset).absolute()
    folder = folder.parent if folder.is_file() else folder
    paths = [str(folder / value) if value else None for value in rows[column]]
    if not any(path and Path(path).is_file() for path in paths[:TRIED]):
        raise EagleEyeError(
            f"`dataset={dataset}`: its column {column} names files such as {rows[0][column]}, which are not in "
            f"{folder}; paths have to be absolute, or start at the folder of the table"
        )
    table = rows.remove_columns(column).add_column(column, paths, feature=datasets.Value("string"))
    return table.cast_column(column, datasets.Image(decode=False))


def find_commit(dataset: str | Path, revision: str | None) -> str | None:
    """The commit that a Hub dataset's revision stands for; `revision` itself where the Hub can't tell."""
    if Path(dataset).exists():
        return revision
    try:
        return HfApi().dataset_info(str(dataset), revision=revision).sha
    except Exception:  # not reachable, say, but in the cache: opening it tells
        return revision


def open_dataset(dataset: str | Path, config: str | None, revision: str | None, streaming: bool | None) -> Any:
    """All splits of a dataset, as `datasets` reads them.

    Raises:
        EagleEyeError: it can't be opened, and why.
    """
    local = Path(dataset).exists()
    if streaming is None:  # tars and the Hub are made for it; local files have random access
        streaming = not local or any(Path(dataset).rglob("*.tar"))
    try:
        if Path(dataset).is_file():
            options: dict[str, Any] = {"delimiter": "\t"} if Path(dataset).suffix.lower() == ".tsv" else {}
            kind = TABLES[Path(dataset).suffix.lower()]
            return datasets.load_dataset(kind, data_files={"train": str(dataset)}, streaming=streaming, **options)
        return datasets.load_dataset(str(dataset), config, revision=revision, streaming=streaming)
    except Exception as error:
        causes = tuple(_causes(error))
        expected = (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError)
        if not isinstance(error, expected) and not is_network_fault(error):
            raise
        raise EagleEyeError(
            f"`dataset={dataset}` can't be opened ({_explain(causes)}); {_remedy(dataset, causes)}"
        ) from error


def check_location(dataset: str | Path) -> None:
    """Refuse the path of a folder that does not exist, before the Hub is asked for it.

    Raises:
        EagleEyeError: it is neither there nor the name of a dataset on the Hub.
    """
    text = str(dataset)
    if not text:
        raise EagleEyeError("`dataset` is a Hub name or a folder; got an empty text")
    if Path(dataset).exists() or "://" in text:
        if Path(dataset).is_file() and Path(dataset).suffix.lower() not in TABLES:
            raise EagleEyeError(
                f"`dataset={text}` can't be opened: it is a file, but none of {', '.join(TABLES)}; give the folder "
                "that holds it, or a name on the Hub"
            )
        return
    try:
        validate_repo_id(text)
        path = isinstance(dataset, Path) or text[0] in "./~"
    except HFValidationError:
        path = True
    if path:
        close = _close_folders(Path(dataset))
        raise EagleEyeError(
            f"`dataset={text}` can't be opened: there is no such folder"
            + (f"; did you mean {' or '.join(close)}?" if close else "; check its path, or give a name on the Hub")
        )


def _close_folders(path: Path) -> list[str]:
    """Folders that are called nearly so: what exists of the path, and the likeliest for its first missing part."""
    path = Path(os.path.expanduser(path))
    base = next(parent for parent in path.parents if parent.is_dir())
    wanted, *rest = path.relative_to(base).parts
    try:
        names = [entry.name for entry in base.iterdir() if entry.is_dir()]
    except OSError:
        return []
    close = [base / name for name in difflib.get_close_matches(wanted, names, n=3)]
    return [str(folder.joinpath(*rest) if folder.joinpath(*rest).is_dir() else folder) for folder in close]


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that it came from."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _explain(causes: tuple[BaseException, ...]) -> str:
    """One line with the error and, where that doesn't tell it, what it came from."""
    first, *others = causes
    own = [error for error in others if _number_of(error) in FULL | FORBIDDEN] or others[-1:]
    if own and str(own[0]).strip() and describe(own[0]) not in describe(first):
        return f"{describe(first)}, from {describe(own[0])}"
    return describe(first)


def _remedy(dataset: str | Path, causes: tuple[BaseException, ...]) -> str:
    numbers, kinds = {_number_of(error) for error in causes}, {type(error).__name__ for error in causes}
    if numbers & FULL or any("disk space" in str(error) for error in causes):
        return "free some space, or put the cache elsewhere with HF_HOME, or read it as a stream (`--streaming True`)"
    if numbers & FORBIDDEN:
        return "see to it that the folder can be read and the cache written, or put the cache elsewhere with HF_HOME"
    if Path(dataset).exists():
        return "a folder holds parquet files, webdataset tars, or images in a folder per class"
    close = _close_folders(Path(dataset))
    local = f"; if you meant a local folder, is it {' or '.join(close)}?" if close else ", or a local folder"
    if kinds & {"DatasetNotFoundError", "RepositoryNotFoundError", "GatedRepoError"}:
        return f"give a name on the Hub that you may read (`hf auth login` where it is private or gated){local}"
    if any(map(is_network_fault, causes)):
        return f"check the connection to the Hub{local}"
    return f"give a name on the Hub that `datasets` can read{local}"


def _number_of(error: BaseException) -> int | None:
    return error.errno if isinstance(error, OSError) else None


def open_together(
    accelerator: Accelerator | None,
    dataset: Any,
    config: str | None,
    revision: str | None,
    streaming: bool | None,
    name: str | None,
) -> OpenedDataset:
    """The same on all processes, which wait for one another: a download may take hours."""
    if accelerator is None:
        return open_any(dataset, config, revision, streaming, name)
    with main_process_works():
        return open_any(dataset, config, revision, streaming, name)


def open_any(
    dataset: Any, config: str | None, revision: str | None, streaming: bool | None, name: str | None
) -> OpenedDataset:
    """What a caller gives as a dataset, opened.

    Raises:
        EagleEyeError: it can't be opened, or is none.
    """
    if isinstance(dataset, OpenedDataset):
        return dataset
    if isinstance(dataset, (str, Path)):
        return open_source(dataset, config, revision, streaming, name)
    if not isinstance(dataset, dict):
        raise EagleEyeError(
            f"`dataset` is a name, a folder, or an opened dataset with its splits (`datasets.DatasetDict`); "
            f"got a {type(dataset).__name__}"
        )
    return OpenedDataset(splits=dataset, name=name or "dataset")
