"""Text for others, without the folders of the machine where it was written."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

START = r"(?:~?/(?!/)|\.{1,2}/|[A-Za-z]:[\\/](?!/))"
"""Of a path that is not the name of something on the Hub, nor an address."""
WHOLE = re.compile(rf"((?:local-dir|imagefolder|folder):)?({START}[^\n]*)")
WITHIN = re.compile(rf"(?<![\w/.~]){START}[^\s'\"`,;()\[\]{{}}|]+")


def hide_paths(value: Any) -> Any:
    """The value with the last component of each local path in it; keys of mappings stay.

    A path is what starts with `/`, `~/`, `./`, `../` or a drive, and what exists here and is no Python file: of
    `data/cifar10` only the disk tells whether it names a folder or a dataset of the Hub.
    """
    if isinstance(value, Mapping):
        return {key: hide_paths(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(hide_paths, value)) if type(value) in (list, tuple) else [*map(hide_paths, value)]
    if isinstance(value, Path):
        return _last(str(value))
    return _hide_text(value) if isinstance(value, str) else value


def hide_command(command: str) -> str:
    """A command line with the last component of each local path in it."""
    try:
        words = shlex.split(command)
    except ValueError:  # no command line of a shell
        return str(hide_paths(command))
    return shlex.join(_hide_word(word) for word in words)


def _hide_word(word: str) -> str:
    flag, equals, value = word.partition("=")
    return f"{flag}={_hide_text(value)}" if equals and flag.startswith("-") else _hide_text(word)


def _hide_text(text: str) -> str:
    found = WHOLE.fullmatch(text)
    if found:
        return (found[1] or "") + _last(found[2])
    if "/" in text and not text.endswith(".py") and "\n" not in text and len(text) < 4096 and _exists(text):
        return _last(text)
    return WITHIN.sub(lambda match: _last(match[0]), text)


def _exists(text: str) -> bool:
    try:
        return Path(text).exists()
    except (OSError, ValueError):
        return False


def _last(path: str) -> str:
    return (PureWindowsPath(path) if "\\" in path else PurePosixPath(path)).name or "."
