"""A run's folder: new, or one that the same run left unfinished."""

from __future__ import annotations

from pathlib import Path

from eagleeye_hf.errors import EagleEyeError
from eagleeye_hf.publishing.config import CARD, CONFIG, WEIGHTS
from eagleeye_hf.training.state import PROBE, make_folder

RUN_FILES = {"run", "search", "strategy", "training", "logs", "result"}
"""What an unfinished run may have left in its folder, without endings."""
HALF_SAVED = [WEIGHTS, CARD, *(f"{name}.tmp" for name in (WEIGHTS, CARD, CONFIG))]
"""What is there beside them where it was killed while it saved its result, without `config.json`, which comes last."""


def prepare_output(output: str) -> Path:
    """The run's folder: new, empty, or one that the same run left unfinished."""
    folder = Path(output)
    if (folder / CONFIG).exists():
        raise EagleEyeError(
            f"`output={folder}` holds a checkpoint already; publish it with `eagleeye push`, or choose another folder"
        )
    found = [path for path in folder.iterdir() if not path.name.startswith(PROBE)] if folder.is_dir() else []
    known = [path for path in found if path.stem.removesuffix("-base") in RUN_FILES]
    if known:
        for name in HALF_SAVED:
            (folder / name).unlink(missing_ok=True)
    strange = [path.name for path in found if path not in known and not (known and path.name in HALF_SAVED)]
    if strange:
        raise EagleEyeError(
            f"`output={folder}` is not empty (it holds {', '.join(strange[:3])}); choose another folder"
        )
    make_folder(folder, "output")
    return folder
