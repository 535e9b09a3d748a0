"""How long a training set takes beside what DuckDB takes for less: medians of interleaved runs, and ratios.

Every contestant reads the same Parquet files and gives its answer as Arrow:

    sameworld         4 windows x (count, sum, max) as of each moment; late rows count once they were readable
    duckdb range      the same windows and aggregates by event time alone (RANGE frames): an easier question
    duckdb asof       the last value by event time alone (ASOF JOIN): one column instead of twelve
    read and sort     nothing but reading the events and sorting them by entity and time

Run it with `python benchmarks/asof.py --events 2_000_000`.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

import sameworld as sw
from sameworld.asof.plan import groupings_of
from sameworld.asof.schema import supported
from sameworld.engines.duckdb import DuckDBEngine
from sameworld.engines.interface import Asked

WINDOWS = {"1h": "1 HOUR", "6h": "6 HOURS", "1d": "1 DAY", "7d": "7 DAYS"}
INSTANT = pa.timestamp("us", tz="UTC")
SPAN_SECONDS = 30 * 86_400
START = 1_700_000_000_000_000
LATENESS_SECONDS = 3_600.0


def generate(folder: Path, events: int, seed: int) -> None:
    """Write events.parquet (k, e, a, x) and moments.parquet (k, t); rows are late by an hour on average."""
    random = np.random.default_rng(seed)
    entities = max(events // 200, 1)

    def of_entities(count: int) -> np.ndarray:
        return (entities * random.random(count) ** 3).astype(np.int64)

    def times(count: int) -> np.ndarray:
        return START + (random.random(count) * SPAN_SECONDS * 1e6).astype(np.int64)

    event = times(events)
    available = event + (random.exponential(LATENESS_SECONDS, events) * 1e6).astype(np.int64)
    columns = {
        "k": pa.array(of_entities(events)),
        "e": pa.array(event, INSTANT),
        "a": pa.array(available, INSTANT),
        "x": pa.array(random.lognormal(3.0, 1.0, events)),
    }
    pq.write_table(pa.table(columns), folder / "events.parquet")
    moments = max(events // 10, 1)
    asked = pa.table({"k": pa.array(of_entities(moments)), "t": pa.array(times(moments), INSTANT)})
    pq.write_table(asked, folder / "moments.parquet")


def sameworld(folder: Path) -> int:
    """Give how many values were computed."""
    source = sw.Source("events", "events.parquet", event_time="e", available_at="a")
    grouped, over = source.by("k"), list(WINDOWS)
    aggregates = [grouped.count(over=over), grouped.sum("x", over=over), grouped.max("x", over=over)]
    engine = DuckDBEngine(folder)
    schemas = {source.content: supported(engine.describe(source.data, "events"))}
    moments = engine.table("moments.parquet", "moments")
    at = pc.cast(moments["t"], pa.int64()).to_numpy()
    values = engine.aggregates(
        groupings_of(aggregates), schemas, Asked(moments, at, at), rows={}, world="as_of"
    )
    engine.close()
    return sum(len(column) for column in values.values())


def duckdb_range(folder: Path) -> int:
    """Give how many values were computed."""
    frames = ", ".join(
        f"w{i} AS (PARTITION BY k ORDER BY t "
        f"RANGE BETWEEN INTERVAL {size} PRECEDING AND INTERVAL 1 MICROSECOND PRECEDING)"
        for i, size in enumerate(WINDOWS.values())
    )
    columns = ", ".join(
        f"count(x) OVER w{i} AS n{i}, sum(x) OVER w{i} AS s{i}, max(x) OVER w{i} AS m{i}"
        for i in range(len(WINDOWS))
    )
    both = (
        f"SELECT k, e AS t, x, false AS asked FROM '{folder}/events.parquet' "
        f"UNION ALL SELECT k, t, NULL, true FROM '{folder}/moments.parquet'"
    )
    query = f"SELECT * FROM (SELECT k, t, asked, {columns} FROM ({both}) WINDOW {frames}) WHERE asked"
    return _run(query) * 3 * len(WINDOWS)


def duckdb_asof(folder: Path) -> int:
    """Give how many values were computed."""
    return _run(
        f"SELECT m.k, m.t, x FROM '{folder}/moments.parquet' m "
        f"ASOF LEFT JOIN '{folder}/events.parquet' e ON m.k = e.k AND m.t > e.e"
    )


def read_and_sort(folder: Path) -> int:
    """Give how many rows were sorted."""
    return _run(f"SELECT * FROM '{folder}/events.parquet' ORDER BY k, e, a")


def _run(query: str) -> int:
    with duckdb.connect() as con:
        return con.sql(query).to_arrow_table().num_rows


CONTESTANTS: dict[str, Callable[[Path], int]] = {
    "sameworld": sameworld,
    "duckdb range": duckdb_range,
    "duckdb asof": duckdb_asof,
    "read and sort": read_and_sort,
}


def main() -> None:
    parser = argparse.ArgumentParser(description="As-of training sets beside DuckDB's own.")
    parser.add_argument("--events", type=int, default=2_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--only", choices=list(CONTESTANTS), action="append", help="run only this one; may be repeated"
    )
    given = parser.parse_args()
    chosen = given.only or list(CONTESTANTS)
    with tempfile.TemporaryDirectory() as made:
        small, folder = Path(made) / "small", Path(made) / "full"
        for where, events in ((small, 2_000), (folder, given.events)):
            where.mkdir()
            generate(where, events, given.seed)
        for name in chosen:
            CONTESTANTS[name](small)  # compile, load libraries
        seconds: dict[str, list[float]] = {name: [] for name in chosen}
        for _ in range(given.rounds):
            for name in chosen:
                begin = time.perf_counter()
                CONTESTANTS[name](folder)
                seconds[name].append(time.perf_counter() - begin)
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    sizes = (
        f"{given.events:,} events, {given.events // 10:,} moments, {max(given.events // 200, 1):,} entities"
    )
    print(f"{sizes}; median of {given.rounds}")
    for name, median in medians.items():
        ratio = f"{median / medians['sameworld']:6.2f} x sameworld" if "sameworld" in medians else ""
        runs = ", ".join(f"{taken:.2f}" for taken in seconds[name])
        print(f"  {name:14} {median:8.2f} s  {ratio}  (runs: {runs})")


if __name__ == "__main__":
    main()
