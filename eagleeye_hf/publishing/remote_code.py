"""The code that a checkpoint may bring along, for environments without this package: three files, as they are here."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).parent.parent

CODE_FILES = {
    path.name: path
    for path in (
        PACKAGE / "publishing" / "remote" / "modeling_eagleeye_pruned.py",
        PACKAGE / "channels" / "resizing.py",
        PACKAGE / "networks" / "cifar_resnet.py",
    )
}
"""By their names in the repo, where the first imports the others from beside it."""

AUTO_MAP = {
    "AutoModelForImageClassification": "modeling_eagleeye_pruned.EagleEyeForImageClassification",
    "AutoModel": "modeling_eagleeye_pruned.EagleEyeModel",
}
"""For `config.json`: which class transformers takes from which file."""
