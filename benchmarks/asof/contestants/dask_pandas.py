"""Dask by hand: all rows of an entity in one partition, and pandas' rolling windows over each partition."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import dask.dataframe as dd
import pandas as pd
import pyarrow as pa
from distributed import Client, LocalCluster

from benchmarks.asof.contestants.pandas_rolling import rolled
from benchmarks.asof.contestants.pandas_rolling import table as as_arrow


@functools.cache
def client() -> Any:
    """Give the client of both contestants on Dask: a process for every core."""
    cluster = LocalCluster(
        n_workers=os.cpu_count(), threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0"
    )
    return Client(cluster)


def windows(folder: Path) -> pd.DataFrame:
    """Four partitions for every core, as the contestant on Spark has it."""
    client()
    events = dd.read_parquet(folder / "events.parquet", columns=["k", "e", "x"]).rename(columns={"e": "t"})
    moments = dd.read_parquet(folder / "moments.parquet").assign(x=float("nan"), asked=True)
    both = dd.concat([events.assign(asked=False), moments[["k", "t", "x", "asked"]]])
    placed = both.shuffle("k", npartitions=4 * (os.cpu_count() or 1))
    meta = rolled(pd.DataFrame(both._meta_nonempty.assign(asked=True)))
    return placed.map_partitions(rolled, meta=meta.iloc[:0]).compute()


def table(answer: pd.DataFrame) -> pa.Table:
    """Give the answer as Arrow."""
    return as_arrow(answer)
