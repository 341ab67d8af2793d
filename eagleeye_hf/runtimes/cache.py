"""What was measured on this machine, kept for the next time."""

from __future__ import annotations

import importlib.metadata
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import constants

from eagleeye_hf.runtimes.runtime import Runtime, cpu_name


def cache_folder() -> Path:
    """Where measurements of this machine are kept, beside the Hub's cache (`HF_HOME`)."""
    return Path(constants.HF_HOME) / "eagleeye_hf"


def identify(runtime: Runtime) -> dict[str, str]:
    """What a measurement depends on beside the network."""
    packages = {"openvino": "openvino", "torch": "torch", "compile": "torch"}
    package = packages.get(runtime.place.runtime, "onnxruntime")
    try:
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # onnxruntime-gpu has another name
        version = ""
    return {"place": json.dumps(runtime.place.to_dict()), "version": version, "cpu": cpu_name()}


def read_cache(file: Path) -> dict[str, Any]:
    """What was kept; empty where nothing was, or what can't be read."""
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write_cache(file: Path, found: Mapping[str, Any]) -> None:
    """Whole or not at all; a cache that can't be written is none."""
    part = file.with_name(f"{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(found, indent=1))
        part.replace(file)
    except OSError:
        part.unlink(missing_ok=True)
