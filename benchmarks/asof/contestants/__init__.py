"""Who takes part. Each is a function of the folder with the data, in a file that alone imports its library; nothing here does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

WINDOWS = {"1h": 3_600, "6h": 6 * 3_600, "1d": 86_400, "7d": 7 * 86_400}
"""Each window's name and its length in seconds. A window is [moment - length, moment): strictly before the moment."""

AGGREGATIONS = ("count", "sum", "mean", "max")
COLUMNS = (*(f"{name}_{window}" for window in WINDOWS for name in AGGREGATIONS), "last")
"""The columns of the whole answer, beside k and t."""

World = Literal["as_of", "corrected", "event_time", "none"]
"""What an answer must equal: as-of values of plain or of corrected rows, values by event time alone, or nothing."""


@dataclass(frozen=True)
class Contestant:
    """Somebody who answers.

    Args:
        name: how the table and `--only` call it.
        module: its file in this folder, without .py.
        function: takes the folder, answers in its own library's way.
        world: what its answer must equal.
        columns: which of COLUMNS it answers.
        needs: the distributions it imports; the first is what it is about.
        rehearsed: one run beforehand, in a process of its own, leaves something that the measured runs find.
        doubling: it does not live to see large data: measured at the largest size it survives, found by doubling.
        omits: which moments it leaves out of its answer, in words; they must be moments without a value. Empty: none.
        by_hand: who does the same work by hand with the same cluster's engine.
        environment: a virtual environment of its own, where its requirements do not go with the others'; empty: none.
    """

    name: str
    module: str
    function: str
    world: World
    columns: tuple[str, ...]
    needs: tuple[str, ...]
    rehearsed: bool = False
    doubling: bool = False
    omits: str = ""
    by_hand: str = ""
    environment: str = ""

    @property
    def answers(self) -> str:
        """What it answers, in the words of the table."""
        if not self.columns:
            return "the sorted events"
        return f"{len(self.columns)} columns" if self.columns == COLUMNS else "1 column, last"

    @property
    def counts(self) -> str:
        """Which rows count in its answer, in the words of the table."""
        return {
            "as_of": "as of: late rows once readable",
            "corrected": "as of: late rows, 10 % corrections",
            "event_time": "event time only",
            "none": "",
        }[self.world]


LAST = ("last",)
REFERENCE = "sameworld"
_ENGINE = ("sameworld", "duckdb", "numba", "numpy", "pyarrow")

EASIER = Contestant("sameworld event time", "sameworld_engine", "event_time", "event_time", COLUMNS, _ENGINE)
"""For the check alone: whoever answers by event time must answer as it does."""

CONTESTANTS = {
    contestant.name: contestant
    for contestant in (
        Contestant(REFERENCE, "sameworld_engine", "cold", "as_of", COLUMNS, _ENGINE),
        Contestant("sameworld warm", "sameworld_engine", "warm", "as_of", COLUMNS, _ENGINE, rehearsed=True),
        Contestant("sameworld corrections", "sameworld_engine", "corrections", "corrected", COLUMNS, _ENGINE),
        *(
            Contestant(
                f"sameworld {name}",
                f"sameworld_{name}",
                "windows",
                "as_of",
                COLUMNS,
                (*_ENGINE, library),
                by_hand=by_hand,
            )
            for name, library, by_hand in (
                ("spark", "pyspark", "pyspark"),
                ("ray", "ray", "ray pandas"),
                ("dask", "distributed", "dask pandas"),
            )
        ),
        Contestant("duckdb range", "duckdb_sql", "windows", "event_time", COLUMNS, ("duckdb", "pyarrow")),
        Contestant("duckdb asof", "duckdb_sql", "asof", "event_time", LAST, ("duckdb", "pyarrow")),
        Contestant("polars", "polars_rolling", "windows", "event_time", COLUMNS, ("polars", "pyarrow")),
        Contestant("pandas", "pandas_rolling", "windows", "event_time", COLUMNS, ("pandas", "pyarrow")),
        Contestant(
            "pyspark", "pyspark_sql", "windows", "event_time", COLUMNS, ("pyspark", "pyarrow"), doubling=True
        ),
        Contestant(
            "ray pandas", "ray_pandas", "windows", "event_time", COLUMNS, ("ray", "pandas", "pyarrow")
        ),
        Contestant(
            "dask pandas",
            "dask_pandas",
            "windows",
            "event_time",
            COLUMNS,
            ("distributed", "pandas", "pyarrow"),
        ),
        Contestant(
            "feast file",
            "feast_stores",
            "file_store",
            "event_time",
            LAST,
            ("feast", "dask", "pandas", "pyarrow"),
            doubling=True,
            omits="moments before their entity's first event",
            environment=".venv-bench-feast",
        ),
        Contestant(
            "feast duckdb",
            "feast_stores",
            "duckdb_store",
            "event_time",
            LAST,
            ("feast", "ibis-framework", "duckdb", "pandas", "pyarrow"),
            doubling=True,
            environment=".venv-bench-feast",
        ),
        Contestant("read and sort", "duckdb_sql", "read_and_sort", "none", (), ("duckdb", "pyarrow")),
    )
}
