"""What a package index shows: links and pictures of the README that work there, and the project's addresses.

The address is told where a release is built, as `PROJECT_URL=https://github.com/USER/eagleeye_hf`; without it
links stay as they are.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from hatchling.metadata.plugin.interface import MetadataHookInterface

PAPER = "https://arxiv.org/abs/2007.02491"
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|#)([^)]+)\)")


class ProjectMetadata(MetadataHookInterface):
    def update(self, metadata: dict) -> None:
        address = os.environ.get("PROJECT_URL", "").rstrip("/")
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        metadata["urls"] = {"Paper": PAPER}
        if address:
            text = LINK.sub(lambda link: _absolute(address, *link.groups()), text)
            metadata["urls"] |= {
                "Source": address,
                "Documentation": f"{address}/tree/main/docs",
                "Changes": f"{address}/blob/main/CHANGELOG.md",
                "Issues": f"{address}/issues",
            }
        metadata["readme"] = {"content-type": "text/markdown", "text": text}


def _absolute(address: str, picture: str, title: str, path: str) -> str:
    return f"{picture}[{title}]({address}/{'raw' if picture else 'blob'}/main/{path})"
