"""Imports point one way: the tree under src/sameworld is the diagram, and this reads it.

definitions <- asof <- engines <- stores <- training <- evaluation, serving, monitoring <- server, console <- cli
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = "sameworld"
ROOT = Path(__file__).resolve().parent.parent / "src" / PACKAGE

# A module may import from its own folder and from any layer before its own. `stores` may import `engines`, not the reverse.
LAYERS = [
    {"errors"},
    {"definitions"},
    {"asof"},
    {"engines"},
    {"stores"},
    {"training"},
    {"evaluation", "serving", "monitoring"},
    {"server", "console"},
    {"cli"},
]
LEVEL = {folder: level for level, layer in enumerate(LAYERS) for folder in layer}
LOOKUPS = {"import_module", "__import__"}


def imports(tree: ast.Module, folder: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    """Give (line, full module name) of every import in a module, those inside functions included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = (
                ".".join([*folder[: len(folder) - node.level + 1], *filter(None, [node.module])])
                if node.level
                else node.module or ""
            )
            # `from sameworld import asof` imports a folder; `from sameworld.asof import read` a module of one.
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def offences(text: str, path: Path) -> list[str]:
    """Give `file:line: why` for every line of a module that points the wrong way.

    Args:
        text: the module's source.
        path: relative to the package.
    """
    own = path.parts[0].removesuffix(".py")
    folder = (PACKAGE, *path.parts[:-1])
    tree = ast.parse(text)
    found: list[tuple[int, str]] = []
    for line, name in imports(tree, folder):
        parts = name.split(".")
        if parts[0] != PACKAGE or own in ("testing", "__init__"):
            continue
        other = parts[1]
        if other == own or (own == "cli" and other == "__version__"):
            continue
        if other == "testing":
            found.append((line, "imports testing, which nothing may"))
        elif other not in LEVEL:
            found.append((line, f"imports {name}, which is in no layer"))
        elif LEVEL[other] >= LEVEL[own]:
            found.append((line, f"{own} imports {other}, which is not below it"))
    if own != "__init__":
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                called = node.func
                word = (
                    called.attr
                    if isinstance(called, ast.Attribute)
                    else called.id
                    if isinstance(called, ast.Name)
                    else ""
                )
                if word in LOOKUPS:
                    found.append(
                        (node.lineno, f"{word}() hides an import; only the package's own first file may")
                    )
    return [f"src/{PACKAGE}/{path}:{line}: {why}" for line, why in sorted(found)]


def test_imports_point_one_way() -> None:
    found = [
        line
        for path in sorted(ROOT.rglob("*.py"))
        for line in offences(path.read_text(), path.relative_to(ROOT))
    ]

    assert not found, "\n".join(found)


def test_every_folder_has_its_layer() -> None:
    folders = {
        path.name.removesuffix(".py") for path in ROOT.iterdir() if path.is_dir() or path.suffix == ".py"
    }

    assert folders - {"__init__", "__pycache__", "testing"} <= set(LEVEL)


@pytest.mark.parametrize(
    ("path", "line", "why"),
    [
        ("definitions/x.py", "from sameworld.asof.read import sweep", "definitions imports asof"),
        ("engines/x.py", "import sameworld.stores.online", "engines imports stores"),
        ("serving/x.py", "from sameworld.evaluation import gap", "serving imports evaluation"),
        ("asof/x.py", "def f():\n    from ..server import app", "asof imports server"),
        ("server/x.py", "from sameworld.testing.oracle import living", "imports testing"),
        ("training/x.py", "from sameworld import Source", "in no layer"),
        ("stores/x.py", "importlib.import_module('lmdb')", "hides an import"),
    ],
)
def test_an_import_that_points_the_wrong_way_is_named(path: str, line: str, why: str) -> None:
    (found,) = offences(line, Path(path))

    assert found.startswith(f"src/sameworld/{path}:{line.count(chr(10)) + 1}: ")
    assert why in found


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("stores/x.py", "from sameworld.engines.duckdb import DuckDBEngine"),
        ("evaluation/x.py", "from sameworld.training.bundle import Bundle"),
        ("asof/x.py", "from . import read"),
        ("testing/x.py", "from sameworld.server import app"),
        ("cli/x.py", "from sameworld import __version__"),
    ],
)
def test_an_import_that_points_the_right_way_is_not(path: str, line: str) -> None:
    assert offences(line, Path(path)) == []
