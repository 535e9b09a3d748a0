"""The meaning of "as of", in plain Python that is obviously right and takes no short cut. Every engine and store must give its bits.

It shares nothing with the kernel: no sorting, no tree, no limbs. Sums are exact fractions, rounded once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

Value = int | float | str | bool | None


@dataclass(frozen=True)
class Version:
    """One row version.

    Args:
        key: the entity; a None anywhere in it belongs to nobody.
        event_time: microseconds since 1970; None is never in a window.
        available_at: microseconds since 1970; None is never readable.
        value: of the aggregated column.
        holds: whether the feature's condition holds for the row.
        fact: the id; None is a fact of its own.
        version: the order of corrections.
        deleted: whether this version withdraws the fact.
        tie: the order of rows that differ in nothing else.
    """

    key: tuple[Any, ...]
    event_time: int | None
    available_at: int | None
    value: Value = None
    holds: bool = True
    fact: str | None = None
    version: int = 0
    deleted: bool = False
    tie: int = 0


def counting(rows: Iterable[Version], corrections_within: int | None) -> list[Version]:
    """Leave out the versions that became readable so long after the first readable one of their fact that they do not count, as if they had never come."""
    rows = list(rows)
    if corrections_within is None:
        return rows
    result: list[Version] = []
    for row in rows:
        first = min(
            (
                other.available_at
                for other in rows
                if row.fact is not None and other.fact == row.fact and other.available_at is not None
            ),
            default=None,
        )
        too_late = (
            first is not None
            and row.available_at is not None
            and row.available_at >= first + corrections_within
        )
        if not too_late:
            result.append(row)
    return result


def living(rows: Iterable[Version], as_of: int, *, corrections_within: int | None = None) -> list[Version]:
    """Give the row versions that are the truth at `as_of`: of those readable strictly before it, the greatest of every fact, unless it is a deletion.

    Versions of a fact that are alike to the last tie are one delivery told several times, and live once. Versions that came too late do not count:
    see `counting`.
    """
    readable = [
        row
        for row in counting(rows, corrections_within)
        if row.available_at is not None and row.available_at < as_of
    ]
    result: list[Version] = []
    for place, row in enumerate(readable):
        of_fact = [
            (number, other)
            for number, other in enumerate(readable)
            if row.fact is not None and other.fact == row.fact
        ]
        greater = any(_order(other) > _order(row) for _, other in of_fact)
        told_before = any(_order(other) == _order(row) and number < place for number, other in of_fact)
        if not (greater or told_before or row.deleted):
            result.append(row)
    return result


def _order(row: Version) -> tuple[int, int, int]:
    assert row.available_at is not None
    return row.version, row.available_at, row.tie


def value_at(
    rows: Sequence[Version],
    operation: str,
    key: tuple[Any, ...],
    at: int,
    *,
    start: int | None,
    end: int = 0,
    as_of: int | None = None,
    corrections_within: int | None = None,
) -> Value:
    """Give one aggregate of one entity at one moment.

    Args:
        rows: all row versions there ever were.
        operation: count, sum, mean, min, max, last or age.
        key: the entity asked about.
        at: the moment, in microseconds.
        start, end: the window is [at + start, at + end); a start of None is the beginning of time.
        as_of: rows readable before this count; the moment itself by default.
        corrections_within: for how long corrections of a fact count, in microseconds; for ever by default.
    """
    inside = [
        row
        for row in living(rows, at if as_of is None else as_of, corrections_within=corrections_within)
        if None not in key
        and row.key == key
        and row.event_time is not None
        and (start is None or row.event_time >= at + start)
        and row.event_time < at + end
        and row.holds
    ]
    if operation == "count":
        return len(inside)
    if operation == "age":
        return (at - max(row.event_time for row in inside)) / 1e6 if inside else None  # type: ignore[type-var] # none is None
    inside = [row for row in inside if row.value is not None]
    if not inside:
        return None
    values = [_one_form(row.value) for row in inside]
    match operation:
        case "sum":
            return exact_sum(values)
        case "mean":
            total = exact_sum(values)
            return float(total) / len(values)
        case "min":
            return min(values, key=_nan_is_greatest)
        case "max":
            return max(values, key=_nan_is_greatest)
        case "last":
            latest = max(inside, key=lambda row: (row.event_time, row.available_at, row.version, row.tie))
            return _one_form(latest.value)
        case _:
            raise ValueError(operation)


def exact_sum(values: Sequence[Any]) -> int | float:
    """Give the sum of integers, or the float64 nearest to the sum of floats."""
    if not any(isinstance(value, float) for value in values):
        return sum(int(value) for value in values)
    if any(math.isnan(value) for value in values) or {math.inf, -math.inf} <= set(values):
        return math.nan
    for infinity in (math.inf, -math.inf):
        if infinity in values:
            return infinity
    total = sum((Fraction(value) for value in values), Fraction(0))
    try:
        return float(total)
    except OverflowError:
        return math.inf if total > 0 else -math.inf


def _one_form(value: Any) -> Any:
    if isinstance(value, float):
        return math.nan if math.isnan(value) else value + 0.0
    return value


def _nan_is_greatest(value: Any) -> tuple[bool, Any]:
    lost = isinstance(value, float) and math.isnan(value)
    return (lost, 0 if lost else value)
