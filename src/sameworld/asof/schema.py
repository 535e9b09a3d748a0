"""Column types, pinned in a definition's plan: `x * 0.1 = 0.3` is true for an integer 3 and false for a double."""

from __future__ import annotations

import re
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


_DECIMAL = re.compile(r"DECIMAL\((\d+),(\d+)\)")
_DECIMAL_DIGITS = 18


def _decimal(duckdb_type: str) -> tuple[int, int] | None:
    """Give the digits and the scale of a decimal that 64 bits hold."""
    found = _DECIMAL.fullmatch(duckdb_type)
    return (int(found[1]), int(found[2])) if found and int(found[1]) <= _DECIMAL_DIGITS else None


def kind_of(duckdb_type: str) -> str:
    """Give the kind of a DuckDB type: integer, float, decimal (up to 18 digits), boolean, text, instant, naive or other."""
    if duckdb_type in INTEGERS:
        return "integer"
    if duckdb_type in FLOATS:
        return "float"
    if duckdb_type in NAIVE:
        return "naive"
    if _decimal(duckdb_type):
        return "decimal"
    return {"BOOLEAN": "boolean", "VARCHAR": "text", INSTANT: "instant"}.get(duckdb_type, "other")


def family_of(duckdb_type: str) -> str:
    """Give the family of a DuckDB type's values: its kind, with the scale of a decimal ("decimal(2)"); naive timestamps have become instants."""
    decimal = _decimal(duckdb_type)
    if decimal:
        return f"decimal({decimal[1]})"
    kind = kind_of(duckdb_type)
    return "instant" if kind == "naive" else kind


def scale_of(family: str) -> int | None:
    """Give a decimal family's scale; None for any other family."""
    return int(family[8:-1]) if family.startswith("decimal(") else None


def arrow_type(duckdb_type: str) -> pa.DataType:
    """Give the Arrow type that carries values of a supported DuckDB type (time in microseconds)."""
    decimal = _decimal(duckdb_type)
    return pa.decimal128(*decimal) if decimal else _ARROW[duckdb_type]


def supported(schema: Mapping[str, str]) -> dict[str, str]:
    """Keep the columns whose types have a rule; a definition that names another one gets an error that says so."""
    return {name: kind for name, kind in schema.items() if kind in _ARROW or _decimal(kind)}


VALUE_TYPES = {
    "integer": pa.int64(),
    "float": pa.float64(),
    "boolean": pa.bool_(),
    "text": pa.string(),
    "instant": pa.timestamp("us", tz="UTC"),
}
"""The type of a request field's value, by the family of its column."""

_BY_NAME = {str(kind): kind for kind in VALUE_TYPES.values()}
_DECIMAL_VALUE = re.compile(r"decimal128\((\d+), (\d+)\)")
_LIST_VALUE = re.compile(r"list<\w+: (.+)>")

_MOST_DIGITS = 38


def value_type(family: str) -> pa.DataType:
    """Give the type of a feature's value, by its family."""
    scale = scale_of(family)
    if scale is not None:
        return pa.decimal128(_MOST_DIGITS, scale)
    if family.startswith("list of "):
        return pa.list_(value_type(family.removeprefix("list of ")))
    return VALUE_TYPES[family]


def type_named(name: str) -> pa.DataType:
    """Give the type of a feature's value from what `str` gives of it."""
    decimal, items = _DECIMAL_VALUE.fullmatch(name), _LIST_VALUE.fullmatch(name)
    if decimal:
        return pa.decimal128(int(decimal[1]), int(decimal[2]))
    return pa.list_(type_named(items[1])) if items else _BY_NAME[name]
