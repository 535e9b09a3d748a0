"""The table of aggregations: which columns each takes, what it gives, which partials the kernel keeps for it, and its one null rule.

Every engine, the online read and the oracle's tests take their list from here.
"""

from __future__ import annotations

from dataclasses import dataclass

# What the kernel keeps for a range of rows. COUNT: how many; SUM: an exact sum and how many; the others: which row.
COUNT, SUM, MIN, MAX, LAST = range(5)

BEGINNING = -(2**63)
"""As a window's start: all history."""
NEVER = 2**63 - 1
"""As an available time: never readable. As a superseded time: still alive."""


@dataclass(frozen=True)
class Aggregation:
    """One aggregation.

    Args:
        partial: which partial the kernel keeps.
        columns: families of column types it takes; empty when it takes no column.
        gives: the family of its value; "column" is the column's own.
        empty: its value over no row (or over nulls only): 0 or null.
        meaning: one sentence for the docs.
    """

    partial: int
    columns: frozenset[str]
    gives: str
    empty: int | None
    meaning: str


_NUMBERS = frozenset({"integer", "float", "boolean"})
_ORDERED = _NUMBERS | {"instant"}

AGGREGATIONS: dict[str, Aggregation] = {
    "count": Aggregation(COUNT, frozenset(), "integer", 0, "the number of rows"),
    "sum": Aggregation(
        SUM, _NUMBERS, "sum", None, "the float64 nearest to the exact sum; int64 for integers and booleans"
    ),
    "mean": Aggregation(
        SUM,
        _NUMBERS,
        "float",
        None,
        "the float64 nearest to the exact sum, divided by the number of non-null values",
    ),
    "min": Aggregation(MIN, _ORDERED, "column", None, "the least value; NaN is greater than every number"),
    "max": Aggregation(MAX, _ORDERED, "column", None, "the greatest value; NaN is greater than every number"),
    "last": Aggregation(LAST, _ORDERED | {"text"}, "column", None, "the value of the latest event"),
    "age": Aggregation(LAST, frozenset(), "float", None, "seconds since the event time of the latest event"),
}


def value_family(operation: str, column_family: str | None) -> str:
    """Give the family of an aggregation's value from that of its column."""
    gives = AGGREGATIONS[operation].gives
    if gives == "sum":
        return "float" if column_family == "float" else "integer"
    return column_family or "float" if gives == "column" else gives
