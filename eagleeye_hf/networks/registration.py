"""Our architectures in timm's register as soon as anybody imports timm, so that this package need not import it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

ARCHITECTURES = ("eagleeye_hf.networks.cifar_resnet", "eagleeye_hf.networks.pruned")


def register_with_timm() -> None:
    """Register now, where timm is there already, or once it is imported."""
    if "timm" in sys.modules:
        _register()
    elif not any(isinstance(finder, _AfterTimm) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterTimm())


def _register() -> None:
    for name in ARCHITECTURES:
        importlib.import_module(name)


class _AfterTimm(MetaPathFinder):
    """Finds timm where Python would, and registers our architectures once it has run."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name == "timm" else None
        if spec is not None and spec.loader is not None:
            _run_afterwards(spec.loader)
        return spec


def _run_afterwards(loader: Loader) -> None:
    execute = loader.exec_module

    def exec_module(module: ModuleType) -> None:
        execute(module)
        _register()

    loader.exec_module = exec_module  # type: ignore[method-assign]
