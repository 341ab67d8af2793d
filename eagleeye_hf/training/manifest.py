"""Whether a folder is whole: a list of its files with their sizes and checksums, written last."""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path

from eagleeye_hf.files import sync_path

MANIFEST = "manifest.json"
CHUNK = 1 << 24


def write_manifest(folder: Path) -> None:
    """List what the folder holds, and see that all of it is on the disk."""
    found = {path.name: _describe(path, sync=True) for path in sorted(folder.iterdir()) if path.name != MANIFEST}
    with (folder / MANIFEST).open("w") as file:
        json.dump(found, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    sync_path(folder)


def find_damage(folder: Path) -> str | None:
    """What is wrong with a folder, if anything."""
    try:
        listed = json.loads((folder / MANIFEST).read_bytes())
        for name, told in listed.items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != told["bytes"]:
                return f"{name} has {path.stat().st_size:,} bytes instead of {told['bytes']:,}"
            if _describe(path) != told:
                return f"{name} has other contents than were written"
    except FileNotFoundError:
        return f"it has no {MANIFEST}, so it was not finished, or is of another version"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return f"{MANIFEST} is no list of files"
    except OSError as error:
        return f"it can't be read: {error}"
    return None if listed else f"{MANIFEST} is empty"


def _describe(path: Path, sync: bool = False) -> dict[str, int | str]:
    checksum = size = 0
    with path.open("rb+" if sync else "rb") as file:
        if sync:
            os.fsync(file.fileno())
        while chunk := file.read(CHUNK):
            checksum, size = zlib.crc32(chunk, checksum), size + len(chunk)
    return {"bytes": size, "crc32": f"{checksum:08x}"}
