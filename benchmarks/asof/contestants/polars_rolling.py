"""Polars: rolling over events and moments together, a window at a time; last by filling forward."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pyarrow as pa

from benchmarks.asof.contestants import WINDOWS


def windows(folder: Path) -> pl.DataFrame:
    """`rolling` was as fast here as the rolling_*_by expressions over k, and faster on one core."""
    events = pl.scan_parquet(folder / "events.parquet").select(
        "k", pl.col("e").alias("t"), "x", pl.lit(False).alias("asked")
    )
    moments = pl.scan_parquet(folder / "moments.parquet").select(
        "k", "t", pl.lit(None, pl.Float64).alias("x"), pl.lit(True).alias("asked")
    )
    # A moment comes before the events of its instant.
    both = (
        pl.concat([events, moments])
        .sort("k", "t", "asked", descending=[False, False, True])
        .with_columns(pl.col("x").forward_fill().over("k").alias("last"))
        .collect()
    )
    parts = [both.select("k", "t", "asked", "last")]
    x = pl.col("x")
    parts += [
        both.rolling("t", period=name, closed="left", group_by="k")
        .agg(
            x.count().alias(f"count_{name}"),
            x.sum().alias(f"sum_{name}"),
            x.mean().alias(f"mean_{name}"),
            x.max().alias(f"max_{name}"),
        )
        .drop("k", "t")
        for name in WINDOWS
    ]
    return pl.concat(parts, how="horizontal").filter("asked")


def table(answer: pl.DataFrame) -> pa.Table:
    """Give the answer as Arrow."""
    return answer.to_arrow()
