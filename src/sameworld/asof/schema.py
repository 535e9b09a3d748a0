"""Column types, pinned in a definition's plan: `x * 0.1 = 0.3` is true for an integer 3 and false for a double."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

Schema = Mapping[str, str]
"""Column name -> DuckDB type, exactly as DuckDB spells it."""

INTEGERS = frozenset({"TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER"})
FLOATS = frozenset({"FLOAT", "DOUBLE"})
INSTANT = "TIMESTAMP WITH TIME ZONE"
NAIVE = frozenset({"TIMESTAMP", "TIMESTAMP_NS", "TIMESTAMP_MS", "TIMESTAMP_S", "DATE"})

_ARROW = {
    "TINYINT": pa.int8(),
    "SMALLINT": pa.int16(),
    "INTEGER": pa.int32(),
    "BIGINT": pa.int64(),
    "UTINYINT": pa.uint8(),
    "USMALLINT": pa.uint16(),
    "UINTEGER": pa.uint32(),
    "FLOAT": pa.float32(),
    "DOUBLE": pa.float64(),
    "BOOLEAN": pa.bool_(),
    "VARCHAR": pa.string(),
    INSTANT: pa.timestamp("us", tz="UTC"),
    "TIMESTAMP": pa.timestamp("us"),
    "TIMESTAMP_NS": pa.timestamp("us"),
    "TIMESTAMP_MS": pa.timestamp("us"),
    "TIMESTAMP_S": pa.timestamp("us"),
    "DATE": pa.date32(),
}


def kind_of(duckdb_type: str) -> str:
    """Give the family of a DuckDB type: integer, float, boolean, text, instant, naive or other."""
    if duckdb_type in INTEGERS:
        return "integer"
    if duckdb_type in FLOATS:
        return "float"
    if duckdb_type in NAIVE:
        return "naive"
    return {"BOOLEAN": "boolean", "VARCHAR": "text", INSTANT: "instant"}.get(duckdb_type, "other")


def arrow_type(duckdb_type: str) -> pa.DataType:
    """Give the Arrow type that carries values of a supported DuckDB type (time in microseconds)."""
    return _ARROW[duckdb_type]


def supported(schema: Mapping[str, str]) -> dict[str, str]:
    """Keep the columns whose types have a rule; a definition that names another one gets an error that says so."""
    return {name: kind for name, kind in schema.items() if kind in _ARROW}


VALUE_TYPES = {
    "integer": pa.int64(),
    "float": pa.float64(),
    "boolean": pa.bool_(),
    "text": pa.string(),
    "instant": pa.timestamp("us", tz="UTC"),
}
"""The type of a feature's value, by the family of the column it comes from."""
