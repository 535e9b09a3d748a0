"""The training set of the whole example, 336,776 real flights, from every engine: rows, columns, seconds, and whether it is the one that one machine gives.

python -m benchmarks.asof.flights [spark|ray|dask ...]       exit status 1 where one differs in a value, the Arrow schema or the fingerprint
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
import tempfile
import time
from pathlib import Path

import sameworld as sw
from sameworld.engines.contents import content_of
from sameworld.training.fingerprint import fingerprint_in
from sameworld.training.world_file import load_world

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "flights"
AS_OF = 1_388_534_400_000_000 + 7 * 86_400_000_000
"""A week after the last flight: all labels have matured."""


def lay_out(folder: Path) -> sw.Model:
    """Write the example's world and its tables; give its model."""
    spec = importlib.util.spec_from_file_location("flights_tables", EXAMPLE / "tables.py")
    assert spec is not None
    assert spec.loader is not None
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    tables.fetch()
    shutil.copy(EXAMPLE / "world.py", folder)
    tables.lay_out(folder / "data")
    return load_world(folder / "world.py").model("flight-delay")


def main(engines: list[str]) -> int:
    """Make, compare, print."""
    different = 0
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        model = lay_out(folder)
        expected = None
        for engine in ["duckdb", *engines]:
            begin = time.perf_counter()
            got = sw.training_set(model, engine=engine, folder=folder, as_of=AS_OF, cache=False)
            seconds, known = time.perf_counter() - begin, fingerprint_in(got.schema.metadata)
            expected = got if expected is None else expected
            same = content_of(got) == content_of(expected) and got.schema.equals(
                expected.schema, check_metadata=True
            )
            different += not same
            fingerprint = "" if known is None else known.content
            print(
                f"{engine}: {got.num_rows:,} rows, {got.num_columns} columns, fingerprint {fingerprint}, content {content_of(got)}, "
                f"{seconds:.1f} s with its start: {'the same' if same else 'DIFFERENT'}",
                flush=True,
            )
    return int(different > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or ["spark", "ray", "dask"]))
