"""DuckDB's own SQL."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pyarrow as pa

from benchmarks.asof.contestants import WINDOWS


def windows(folder: Path) -> pa.Table:
    """RANGE frames over events and moments together. Integers, since frames of intervals take half as long again; last by the row before."""
    frames = ", ".join(
        f"w{name} AS (PARTITION BY k ORDER BY t RANGE BETWEEN {seconds * 1_000_000} PRECEDING AND 1 PRECEDING)"
        for name, seconds in WINDOWS.items()
    )
    columns = ", ".join(
        f"count(x) OVER w{name} AS count_{name}, sum(x) OVER w{name} AS sum_{name}, "
        f"avg(x) OVER w{name} AS mean_{name}, max(x) OVER w{name} AS max_{name}"
        for name in WINDOWS
    )
    both = (
        f"SELECT k, epoch_us(e) AS t, x, false AS asked FROM '{folder}/events.parquet' "
        f"UNION ALL SELECT k, epoch_us(t), NULL, true FROM '{folder}/moments.parquet'"
    )
    # A moment comes before the events of its instant.
    last = "last_value(x IGNORE NULLS) OVER (PARTITION BY k ORDER BY t, asked DESC ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)"
    return _run(
        "SELECT * REPLACE (make_timestamptz(t) AS t) FROM "
        f"(SELECT k, t, asked, {columns}, {last} AS last FROM ({both}) WINDOW {frames}) WHERE asked"
    )


def asof(folder: Path) -> pa.Table:
    """ASOF JOIN: the last value alone."""
    return _run(
        f"SELECT m.k, m.t, x AS last FROM '{folder}/moments.parquet' m "
        f"ASOF LEFT JOIN '{folder}/events.parquet' e ON m.k = e.k AND m.t > e.e"
    )


def read_and_sort(folder: Path) -> pa.Table:
    """Nothing but reading the events and sorting them: what no engine that needs them sorted can beat without keeping them so."""
    return _run(f"SELECT * FROM '{folder}/events.parquet' ORDER BY k, e, a")


def _run(query: str) -> pa.Table:
    with duckdb.connect() as con:
        con.execute("SET TimeZone = 'UTC'")
        con.execute("SET enable_progress_bar = false")
        return con.sql(query).to_arrow_table()


def table(answer: pa.Table) -> pa.Table:
    """Give the answer as Arrow."""
    return answer
