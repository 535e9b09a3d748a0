"""The table of aggregations: which columns each takes, what it gives, which partial the kernel keeps for it, and how its value is read.

Every engine, the online read, the check of definitions, the reference page and the tests against the oracle take their list from here. One that
can be read from a partial that is already kept is one entry; a new partial is also a way to add a row to it (`kernel.add`) and to walk it.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from sameworld.asof import values
from sameworld.asof.schema import value_type
from sameworld.asof.values import Value

# What the kernel keeps for a range of rows. COUNT: how many; SUM: an exact sum and how many; SQUARES: that and the exact sum of squares;
# DISTINCT: how often each value is there; MIN, MAX: the extreme value; FIRST, LAST: which row, LATEST: which rows.
COUNT, SUM, SQUARES, DISTINCT, MIN, MAX, FIRST, LAST, LATEST = range(9)

BEGINNING = -(2**63)
"""As a window's start: all history."""
NEVER = 2**63 - 1
"""As an available time: never readable. As a superseded time: still alive."""


@dataclass(frozen=True)
class Aggregation:
    """One aggregation.

    Args:
        partial: which partial the kernel keeps of each of its columns' inputs.
        columns: families of column types it takes; empty when it takes no column.
        gives: the family of its value; "column" is the column's own, "sum" that of an exact sum of it, "list" a list of the column's.
        empty: its value over no row (or over nulls only); the text says what it is where that is no constant.
        meaning: one sentence for the docs.
        value: how its value is made of its partials.
        arguments: what it takes besides a column and windows.
    """

    partial: int
    columns: frozenset[str]
    gives: str
    empty: int | bool | str | None
    meaning: str
    value: Value
    arguments: tuple[str, ...] = ()

    @property
    def ordered(self) -> bool:
        """Whether the order among rows of one event time can matter."""
        return self.partial in (FIRST, LAST, LATEST)


_NUMBERS = frozenset({"integer", "float", "boolean", "decimal"})
_ORDERED = _NUMBERS | {"instant", "text"}
_NONE: frozenset[str] = frozenset()

AGGREGATIONS: dict[str, Aggregation] = {
    "count": Aggregation(COUNT, _NONE, "integer", 0, "the number of rows", Value(values.NUMBER)),
    "exists": Aggregation(COUNT, _NONE, "boolean", False, "whether there is a row", Value(values.THERE)),
    "sum": Aggregation(
        SUM,
        _NUMBERS,
        "sum",
        None,
        "the float64 nearest to the exact sum; int64 for integers and booleans, a decimal for decimals",
        Value(values.TOTAL, 1),
    ),
    "mean": Aggregation(
        SUM,
        _NUMBERS,
        "float",
        None,
        "the float64 nearest to the exact sum, divided by the number of non-null values",
        Value(values.MEAN, 1),
    ),
    "var": Aggregation(
        SQUARES,
        _NUMBERS,
        "float",
        None,
        "the float64 nearest to the exact sample variance (n - 1); null below two values",
        Value(values.WORD, 2),
    ),
    "std": Aggregation(SQUARES, _NUMBERS, "float", None, "the square root of `var`", Value(values.ROOT, 2)),
    "ratio": Aggregation(
        SUM,
        _NUMBERS,
        "float",
        "the prior; null where the weight is 0",
        "(sum of the column + prior * weight) / (sum of `by` + weight), each sum as `sum` gives it, 0 where it has no value; "
        "null when that divides by zero",
        Value(values.RATIO),
        ("by", "prior", "weight"),
    ),
    "nunique": Aggregation(
        DISTINCT, _ORDERED, "integer", 0, "the number of different non-null values", Value(values.NUMBER)
    ),
    "min": Aggregation(
        MIN,
        _ORDERED,
        "column",
        None,
        "the least value; NaN is greater than every number, text is ordered by code points",
        Value(values.WORD, 1),
    ),
    "max": Aggregation(
        MAX,
        _ORDERED,
        "column",
        None,
        "the greatest value; NaN is greater than every number, text is ordered by code points",
        Value(values.WORD, 1),
    ),
    "first": Aggregation(
        FIRST, _ORDERED, "column", None, "the value of the earliest event", Value(values.WORD, 0)
    ),
    "last": Aggregation(
        LAST, _ORDERED, "column", None, "the value of the latest event", Value(values.WORD, 0)
    ),
    "last_n": Aggregation(
        LATEST,
        _ORDERED,
        "list",
        None,
        "the values of the latest `n` events, the latest last; null when there is none",
        Value(values.LIST),
        ("n",),
    ),
    "age": Aggregation(
        LAST, _NONE, "float", None, "seconds since the event time of the latest event", Value(values.AGE, 0)
    ),
}


def value_family(operation: str, column_family: str | None) -> str:
    """Give the family of an aggregation's value from that of its column."""
    gives = AGGREGATIONS[operation].gives
    family = column_family or "float"
    if gives == "sum":
        return "integer" if family == "boolean" else family
    if gives == "list":
        return f"list of {family}"
    return family if gives == "column" else gives


def type_of(operation: str, column_family: str | None) -> pa.DataType:
    """Give the type of an aggregation's value from the family of its column."""
    return value_type(value_family(operation, column_family))
