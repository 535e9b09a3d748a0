"""The flights example's tables, laid out once for all tests."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

FLIGHTS = Path(__file__).parents[2] / "examples" / "flights"


@pytest.fixture(scope="session")
def tables() -> ModuleType:
    spec = importlib.util.spec_from_file_location("flights_tables", FLIGHTS / "tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def folder(tables: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where they are, beside a copy of the world. Not to be changed."""
    made: Path = tmp_path_factory.mktemp("flights") / "data"
    tables.fetch()
    tables.lay_out(made)
    return made
