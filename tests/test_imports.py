"""Importing the package is cheap: what compiles or opens an engine loads when it is needed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SOURCES = Path(__file__).resolve().parent.parent / "src"
HEAVY = ("numba", "duckdb", "lightgbm", "numpy", "pyarrow", "sklearn", "lmdb", "httptools")
IMPORT = "import sameworld"
HELP = """
import sys
from sameworld.cli.main import main
sys.argv = ["sameworld", "--help"]
try:
    main()
except SystemExit as end:
    assert end.code == 0
"""
COMMAND_HELP = HELP.replace('"--help"', '"serve", "--help"')


@pytest.mark.parametrize("program", [IMPORT, HELP, COMMAND_HELP], ids=["import", "help", "serve-help"])
def test_nothing_heavy_is_imported_by(program: str) -> None:
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(SOURCES), os.environ.get("PYTHONPATH")])),
    }
    program += f"\nimport sys\nprint('loaded:', *[name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"

    done = subprocess.run(
        [sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=60, check=True
    )

    assert done.stderr.splitlines()[-1].split() == ["loaded:"]


def test_every_public_name_is_there() -> None:
    import sameworld as sw

    assert sorted(sw.__all__) == sw.__all__
    assert all(getattr(sw, name) is not None for name in sw.__all__)
