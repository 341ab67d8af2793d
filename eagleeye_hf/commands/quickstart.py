"""`eagleeye quickstart`."""

from __future__ import annotations

from eagleeye_hf.runs.quickstart import QuickstartConfig as Config
from eagleeye_hf.runs.quickstart import run_quickstart as run

__all__ = ["Config", "run"]
