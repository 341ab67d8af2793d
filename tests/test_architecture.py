"""Imports go down only."""

import ast
from pathlib import Path

import eagleeye_hf

ROOT = Path(eagleeye_hf.__file__).parent
LEVELS = [
    "errors",
    "configs",
    "files",
    "processes",
    "telling",
    "networks",
    "channels",
    "tracing",
    "strategies",
    "pruning",
    "runtimes",
    "data",
    "evaluation",
    "search",
    "training",
    "publishing",
    "reports",
    "study",
    "runs",
    "commands",
    "cli",
    "__main__",
]
"""Every file and folder of the package, from the top down."""


def imports(path: Path) -> list[str]:
    """Package modules imported at run time (those under TYPE_CHECKING do not count)."""
    tree = ast.parse(path.read_text())
    guarded = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
        for node in ast.walk(block)
    }
    names = []
    for node in ast.walk(tree):
        if id(node) in guarded:
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            names.append(node.module)
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    return [name.split(".", 1)[1] for name in names if name.startswith("eagleeye_hf.")]


def test_every_room_imports_only_from_rooms_above_it():
    for path in ROOT.rglob("*.py"):
        room = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if room == "__init__" or "remote" in path.parts:  # what is published, imported by nothing here
            continue
        for name in imports(path):
            assert LEVELS.index(name.split(".")[0]) <= LEVELS.index(room), f"{path} imports {name}"


def test_every_room_is_listed():
    found = {path.stem for path in ROOT.iterdir() if path.suffix == ".py" or any(path.glob("*.py"))}
    assert found - {"__init__"} == set(LEVELS)


def test_the_graph_holds_no_torch():
    assert "torch" not in (ROOT / "channels" / "graph.py").read_text().replace("no torch model", "")


def test_public_names_exist():
    for name in eagleeye_hf.__all__:
        assert getattr(eagleeye_hf, name).__doc__ or name.isupper()
