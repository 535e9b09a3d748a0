"""Ray Data and pandas by hand: all rows of an entity in one block, and pandas' rolling windows over each block."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd
import pyarrow as pa
import ray
import ray.data

from benchmarks.asof.contestants.pandas_rolling import rolled
from benchmarks.asof.contestants.pandas_rolling import table as as_arrow


def start() -> None:
    """Have Ray for both contestants on it: as many workers at a time as there are cores."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1")
    ray.data.DataContext.get_current().enable_progress_bars = False


def windows(folder: Path) -> pd.DataFrame:
    """Four blocks for every core, as the contestant on Spark has it."""
    start()
    events = ray.data.read_parquet(str(folder / "events.parquet"), columns=["k", "e", "x"])
    moments = ray.data.read_parquet(str(folder / "moments.parquet"))
    both = events.map_batches(_event, batch_format="pandas").union(
        moments.map_batches(_moment, batch_format="pandas")
    )
    placed = both.repartition(4 * (os.cpu_count() or 1), keys=["k"])
    done = placed.map_batches(rolled, batch_size=None, batch_format="pandas")
    return pd.concat(ray.get(done.to_pandas_refs()), ignore_index=True)


def _event(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.rename(columns={"e": "t"}).assign(asked=False)


def _moment(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.assign(x=float("nan"), asked=True)[["k", "t", "x", "asked"]]


def table(answer: pd.DataFrame) -> pa.Table:
    """Give the answer as Arrow."""
    return as_arrow(answer)
