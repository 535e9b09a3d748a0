"""Every entry of the table of aggregations over every family of columns it takes, for tests against the oracle. A new entry is covered, or fails."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import pyarrow as pa
from hypothesis import strategies as st

from sameworld.asof.aggregations import AGGREGATIONS
from sameworld.definitions.feature import Aggregate

INSTANT = pa.timestamp("us", tz="UTC")
LARGEST, LEAST = 2**63 - 1, -(2**63)

COLUMNS: dict[str, dict[str, tuple[pa.DataType, st.SearchStrategy[Any]]]] = {
    "integer": {
        "n": (pa.int64(), st.integers(-(2**40), 2**40)),
        "huge": (
            pa.int64(),
            st.sampled_from([LARGEST, LEAST, LARGEST - 1, LEAST + 1, 2**62, -(2**62), -1, 0, 1]),
        ),
        "small": (pa.int8(), st.integers(-128, 127)),
        "unsigned": (pa.uint32(), st.integers(0, 2**32 - 1)),
    },
    "float": {
        "x": (
            pa.float64(),
            st.one_of(
                st.sampled_from([0.0, -0.0, 1e-300, 1e300, -1e300, 1e15, -1e15, 0.1, 5e-324]),
                st.sampled_from([float("nan"), float("inf"), float("-inf"), 1.7976931348623157e308]),
                st.floats(width=64),
                st.floats(-10, 10),
            ),
        ),
        "y": (pa.float64(), st.sampled_from([0.0, -0.0, 1e15, -1e15, 1e-3, -1e-3, 0.1, 3.0, 1e7])),
        "half": (pa.float32(), st.floats(width=32)),
    },
    "boolean": {"b": (pa.bool_(), st.booleans())},
    "decimal": {
        "m": (
            pa.decimal128(18, 2),
            st.one_of(
                st.sampled_from(
                    [Decimal("9999999999999999.99"), Decimal("-9999999999999999.99"), Decimal("0.10")]
                ),
                st.decimals(-1000, 1000, places=2),
            ),
        ),
        "tiny": (pa.decimal128(18, 18), st.decimals(Decimal("-0.9"), Decimal("0.9"), places=18)),
        "whole": (pa.decimal128(9, 0), st.decimals(-999, 999, places=0)),
    },
    "instant": {"w": (INSTANT, st.integers(-(2**50), 2**50))},
    "text": {"s": (pa.string(), st.sampled_from(["", "u", "uu", "ж", "\uffff", "😀", "a\x00b"]))},
}
"""Family -> columns of it: each with its type and its values (instants in microseconds)."""

ARGUMENTS: dict[str, st.SearchStrategy[Any]] = {
    "prior": st.sampled_from([0.0, 0.25, -1.5, 1e300]),
    "weight": st.sampled_from([0.0, 1.0, 10.0]),
    "n": st.integers(1, 5),
}
"""What an aggregation takes besides its column; `by` is another column of numbers."""

VALUE_TYPES = {
    "integer": pa.int64(),
    "float": pa.float64(),
    "boolean": pa.bool_(),
    "instant": INSTANT,
    "text": pa.string(),
}

CASES = [
    (operation, family)
    for operation, entry in AGGREGATIONS.items()
    for family in (sorted(entry.columns) or [None])
]
"""Every aggregation with every family it takes."""


def types() -> dict[str, pa.DataType]:
    return {name: kind for columns in COLUMNS.values() for name, (kind, _) in columns.items()}


def values(*, finite: bool = False) -> dict[str, st.SearchStrategy[Any]]:
    """Column -> its values in a row; finite: what JSON can carry."""
    drawn = {name: strategy for columns in COLUMNS.values() for name, (_, strategy) in columns.items()}
    if finite:
        drawn |= {
            name: strategy.filter(lambda value: abs(value) < float("inf"))
            for name, strategy in drawn.items()
            if name in COLUMNS["float"]
        }
    return {name: st.one_of(st.none(), strategy, strategy) for name, strategy in drawn.items()}


@st.composite
def calls(draw: st.DrawFn, operation: str, family: str | None) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
    """Draw a call of an aggregation on a column of a family: (operation, positional arguments, keywords)."""
    if family is None:
        return operation, (), {}
    column = draw(st.sampled_from(sorted(COLUMNS[family])))
    given: dict[str, Any] = {}
    for argument in AGGREGATIONS[operation].arguments:
        if argument == "by":
            other = draw(st.sampled_from(sorted(AGGREGATIONS[operation].columns)))
            given["by"] = draw(st.sampled_from(sorted(COLUMNS[other])))
        else:
            given[argument] = draw(ARGUMENTS[argument])
    return operation, (column,), given


def asked_of_oracle(aggregate: Aggregate) -> dict[str, Any]:
    """An aggregate's arguments as the oracle's keywords."""
    given = dict(zip(AGGREGATIONS[aggregate.operation].arguments, aggregate.arguments, strict=True))
    given.pop("by", None)
    return given


def columns_of(aggregate: Aggregate, row: Mapping[str, Any]) -> dict[str, Any]:
    """A row's values of the aggregated columns, as the oracle's `Version` has them."""
    return {
        name: row[column]
        for name, column in zip(("value", "second"), aggregate.columns_read, strict=False)
        if column is not None
    }


def type_of(aggregate: Aggregate) -> pa.DataType:
    """The type of an aggregate's values."""
    gives = AGGREGATIONS[aggregate.operation].gives
    if aggregate.column is None or gives in VALUE_TYPES:
        return VALUE_TYPES[gives]
    family = next(family for family, columns in COLUMNS.items() if aggregate.column in columns)
    if gives == "sum" and family == "boolean":
        return VALUE_TYPES["integer"]
    kind = types()[aggregate.column]
    own = pa.decimal128(38, kind.scale) if family == "decimal" else VALUE_TYPES[family]
    return pa.list_(own) if gives == "list" else own


def bits(value: Any) -> Any:
    """What tells values apart to the last bit."""
    if isinstance(value, float):
        return struct.pack("<d", value).hex()
    if isinstance(value, list):
        return [bits(item) for item in value]
    return str(value) if isinstance(value, Decimal) else value


def plain(column: pa.Array) -> list[Any]:
    """A column's values as the oracle gives them: instants in microseconds."""
    if pa.types.is_list(column.type) and pa.types.is_timestamp(column.type.value_type):
        column = column.cast(pa.list_(pa.int64()))
    elif pa.types.is_timestamp(column.type):
        column = column.cast(pa.int64())
    return column.to_pylist()
