"""Histories made to break things, for tests against the oracle: late, corrected, withdrawn and repeated rows, with nulls anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
from hypothesis import strategies as st

import sameworld as sw
from sameworld.asof.rows import prepared_sql
from sameworld.asof.schema import Schema
from sameworld.definitions.feature import Aggregate
from sameworld.engines.duckdb import DuckDBEngine
from sameworld.testing import oracle

INSTANT = pa.timestamp("us", tz="UTC")
SCHEMA = pa.schema(
    [
        ("k1", pa.string()),
        ("k2", pa.int64()),
        ("e", INSTANT),
        ("a", INSTANT),
        ("id", pa.string()),
        ("v", pa.int64()),
        ("d", pa.bool_()),
        ("x", pa.float64()),
        ("n", pa.int64()),
        ("s", pa.string()),
    ]
)

times = st.integers(0, 12)
floats = st.one_of(
    st.sampled_from(
        [
            0.0,
            -0.0,
            1e-300,
            1e300,
            -1e300,
            1e15,
            -1e15,
            0.1,
            float("nan"),
            float("inf"),
            float("-inf"),
            5e-324,
        ]
    ),
    st.floats(width=64),
    st.floats(-10, 10),
)
rows = st.fixed_dictionaries(
    {
        "k1": st.sampled_from(["a", "b", "ü", "", None]),
        "k2": st.sampled_from([0, 1, None]),
        "e": st.one_of(st.none(), times),
        "a": st.one_of(st.none(), times),
        "id": st.sampled_from(["p", "q", "r", None]),
        "v": st.sampled_from([0, 1, 2, None]),
        "d": st.sampled_from([False, False, False, True, None]),
        "x": st.one_of(st.none(), floats),
        "n": st.one_of(st.none(), st.integers(-(2**40), 2**40)),
        "s": st.sampled_from(["", "u", "ж", None]),
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
            value=row[aggregate.column] if aggregate.column else None,
            holds=aggregate.where is None
            or (row["x"] is not None and (row["x"] > 0 or row["x"] != row["x"]))
            or row["s"] == "u",
            fact=row["id"] if source.id else None,
            version=(row["v"] if row["v"] is not None else -(2**63)) if source.version else 0,
            deleted=bool(row["d"]) and source.deleted is not None,
            tie=tie,
        )
        for row, tie in zip(history, ties, strict=True)
    ]
