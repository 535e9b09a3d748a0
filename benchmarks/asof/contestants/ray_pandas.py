"""Ray and pandas by hand: tasks put all rows of an entity into one frame, and pandas' rolling windows go over each. Ray Data's `repartition(keys=)` takes several times as long."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from benchmarks.asof.contestants.pandas_rolling import rolled
from benchmarks.asof.contestants.pandas_rolling import table as as_arrow


def start() -> None:
    """Have Ray for both contestants on it: as many workers at a time as there are cores."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1")


def windows(folder: Path) -> pd.DataFrame:
    """Four blocks for every core, as the contestant on Spark has it."""
    start()
    parts = 4 * (os.cpu_count() or 1)
    cut = _cut.options(num_returns=parts)
    pieces = [
        cut.remote(str(file), group, parts)
        for file in (folder / "events.parquet", folder / "moments.parquet")
        for group in range(pq.read_metadata(file).num_row_groups)
    ]
    return pd.concat(
        ray.get([_rolled.remote(*some) for some in zip(*pieces, strict=True)]), ignore_index=True
    )


@ray.remote
def _cut(file: str, group: int, parts: int) -> list[pd.DataFrame]:
    """Give a row group's events or moments, those of an entity in one of so many frames."""
    rows = pq.ParquetFile(file).read_row_group(group).to_pandas()
    if "e" in rows:
        rows = rows[["k", "e", "x"]].rename(columns={"e": "t"}).assign(asked=False)
    else:
        rows = rows[["k", "t"]].assign(x=float("nan"), asked=True)
    place = pd.util.hash_array(rows["k"].to_numpy()) % parts
    return [rows[place == part] for part in range(parts)]


@ray.remote
def _rolled(*pieces: pd.DataFrame) -> pd.DataFrame:
    return rolled(pd.concat(pieces))


def table(answer: pd.DataFrame) -> pa.Table:
    """Give the answer as Arrow."""
    return as_arrow(answer)
