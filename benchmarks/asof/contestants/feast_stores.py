"""Feast's get_historical_features: the last value alone, by event time, from its two offline stores for files."""

from __future__ import annotations

import tempfile
from datetime import timedelta
from pathlib import Path

import pandas as pd
import pyarrow as pa
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig
from feast.types import Float64
from feast.value_type import ValueType


def file_store(folder: Path) -> pd.DataFrame:
    """The default offline store, on dask."""
    return _answer(folder, "file")


def duckdb_store(folder: Path) -> pd.DataFrame:
    """The offline store on DuckDB, through ibis."""
    return _answer(folder, "duckdb")


def _answer(folder: Path, kind: str) -> pd.DataFrame:
    key = Entity(name="k", join_keys=["k"], value_type=ValueType.INT64)
    view = FeatureView(
        name="events",
        entities=[key],
        ttl=timedelta(0),
        schema=[Field(name="x", dtype=Float64)],
        source=FileSource(path=str(folder / "events.parquet"), timestamp_field="e"),
    )
    moments = pd.read_parquet(folder / "moments.parquet").rename(columns={"t": "event_timestamp"})
    with tempfile.TemporaryDirectory() as made:
        config = RepoConfig(
            project="bench",
            provider="local",
            registry=f"{made}/registry.db",
            online_store={"type": "sqlite", "path": f"{made}/online.db"},
            offline_store={"type": kind},
            entity_key_serialization_version=3,
        )
        store = FeatureStore(config=config)
        store.apply([key, view])
        return store.get_historical_features(entity_df=moments, features=["events:x"]).to_df()


def table(answer: pd.DataFrame) -> pa.Table:
    """Give the answer as Arrow."""
    named = answer.rename(columns={"event_timestamp": "t", "x": "last"})[["k", "t", "last"]]
    rows = pa.Table.from_pandas(named, preserve_index=False)
    return rows.set_column(1, "t", rows["t"].cast(pa.timestamp("us", tz="UTC")))
