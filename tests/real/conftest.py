"""Real tables: they are not part of the project, so where they are not there the tests that read them are skipped."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real tables: SAMEWORLD_REAL_DATA, or shared/data beside the checkout."""
    folder = Path(os.environ.get("SAMEWORLD_REAL_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip("no real tables: neither shared/data beside the checkout nor SAMEWORLD_REAL_DATA")
    return folder
