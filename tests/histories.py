"""Histories made to break things, for tests against the oracle: late, corrected, withdrawn and repeated rows, with nulls anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
from every_aggregation import INSTANT, columns_of, types, values
from hypothesis import strategies as st

import sameworld as sw
from sameworld.asof.rows import prepared_sql
from sameworld.asof.schema import Schema
from sameworld.definitions.feature import Aggregate
from sameworld.engines.duckdb import DuckDBEngine
from sameworld.testing import oracle

KEYS = {"k1": pa.string(), "k2": pa.int64(), "k3": pa.bool_()}
SCHEMA = pa.schema(
    [
        *KEYS.items(),
        ("e", INSTANT),
        ("a", INSTANT),
        ("id", pa.string()),
        ("v", pa.int64()),
        ("d", pa.bool_()),
        *types().items(),
    ]
)

times = st.integers(0, 12)
rows = st.fixed_dictionaries(
    {
        "k1": st.sampled_from(["a", "a", "a", "b", "ü\u2028", "", None]),
        "k2": st.sampled_from([0, 0, 1, None]),
        "k3": st.booleans(),
        "e": st.one_of(times, times, times, st.none()),
        "a": st.one_of(times, times, times, st.none()),
        "id": st.sampled_from(["p", "q", "r", None]),
        "v": st.sampled_from([0, 1, 2, None]),
        "d": st.sampled_from([False, False, False, True, None]),
        **values(),
    }
)
CONDITION = "x > 0 OR s = 'u'"
VERSIONED: dict[str, dict[str, str]] = {
    "append_only": {},
    "by_arrival": {"id": "id", "deleted": "d"},
    "by_version": {"id": "id", "version": "v", "deleted": "d"},
}
"""How the versions of a fact are told apart -> what sw.Source is given."""


def ties_of(
    engine: DuckDBEngine, source: sw.Source, schema: Schema, keys: tuple[str, ...], table: pa.Table
) -> list[int]:
    """Give each row's tie."""
    if not table.num_rows:
        return []
    engine._con.register("raw", table)
    query = f"SELECT tie FROM ({prepared_sql(source, schema, keys, (), 'raw')})"
    return [int(tie) for tie in engine._con.execute(query).fetchnumpy()["tie"]]


def versions(
    source: sw.Source, aggregate: Aggregate, history: Sequence[dict[str, Any]], ties: Sequence[int]
) -> list[oracle.Version]:
    """Give a history as the oracle takes it; a condition is `CONDITION`."""
    return [
        oracle.Version(
            key=tuple(row[key] for key in aggregate.keys),
            event_time=row["e"],
            available_at=row["a"],
            holds=aggregate.where is None
            or (row["x"] is not None and (row["x"] > 0 or row["x"] != row["x"]))
            or row["s"] == "u",
            fact=row["id"] if source.id else None,
            version=(row["v"] if row["v"] is not None else -(2**63)) if source.version else 0,
            deleted=bool(row["d"]) and source.deleted is not None,
            tie=tie,
            **columns_of(aggregate, row),
        )
        for row, tie in zip(history, ties, strict=True)
    ]
