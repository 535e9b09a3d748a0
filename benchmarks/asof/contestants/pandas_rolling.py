"""pandas: groupby().rolling() over events and moments together, a window at a time; last by filling forward."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from benchmarks.asof.contestants import AGGREGATIONS, COLUMNS, WINDOWS


def windows(folder: Path) -> pd.DataFrame:
    """What most notebooks do."""
    events = pd.read_parquet(folder / "events.parquet", columns=["k", "e", "x"])
    moments = pd.read_parquet(folder / "moments.parquet")
    return rolled(
        pd.concat([events.rename(columns={"e": "t"}).assign(asked=False), moments.assign(asked=True)])
    )


def rolled(both: pd.DataFrame) -> pd.DataFrame:
    """Give the moments among events and moments (k, t, x, asked) with their values; also a partition of entities at a time, for others."""
    # A moment comes before the events of its instant.
    both = both.sort_values(["k", "t", "asked"], ascending=[True, True, False], ignore_index=True)
    grouped = both.groupby("k")
    columns = {"k": both["k"], "t": both["t"], "last": grouped["x"].ffill()}
    for window, seconds in WINDOWS.items():
        rolling = grouped.rolling(timedelta(seconds=seconds), on="t", closed="left")["x"]
        for name in AGGREGATIONS:
            columns[f"{name}_{window}"] = getattr(rolling, name)().to_numpy()
        # It counts no row as NaN.
        columns[f"count_{window}"] = np.nan_to_num(columns[f"count_{window}"])
    return pd.DataFrame(columns).loc[both["asked"]]


def table(answer: pd.DataFrame) -> pa.Table:
    """Give the answer as Arrow."""
    return pa.Table.from_pandas(answer[["k", "t", *COLUMNS]], preserve_index=False)
