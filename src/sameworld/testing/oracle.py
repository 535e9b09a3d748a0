"""The meaning of "as of", in plain Python that is obviously right and takes no short cut. Every engine and store must give its bits.

It shares nothing with the kernel: no sliding, no blocks, no limbs. Sums and variances are exact fractions, rounded once.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any

from sameworld.errors import AsOfError

Value = int | float | str | bool | Decimal | list[Any] | None


@dataclass(frozen=True)
class Version:
    """One row version.

    Args:
        key: the entity; a None anywhere in it belongs to nobody.
        event_time: microseconds since 1970; None is never in a window.
        available_at: microseconds since 1970; None is never readable.
        value: of the aggregated column; a `decimal.Decimal` with the column's own scale for a decimal, microseconds for an instant.
        second: of the second aggregated column, where the aggregation has two.
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
    second: Value = None
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


def joined_by_event_time(rows: Iterable[Version], *, corrections_within: int | None = None) -> list[Version]:
    """Give what the world `event_time` has instead of these rows: every fact's last version, unless it is a deletion, readable at its event time.

    A row that never becomes readable is treated as if it had been at its event time; one without an event time is not there.
    """
    dated = [
        row if row.available_at is not None else dataclasses.replace(row, available_at=row.event_time)
        for row in rows
        if row.event_time is not None
    ]
    after_everything = 1 + max((row.available_at or 0 for row in dated), default=0)
    return [
        dataclasses.replace(row, available_at=row.event_time)
        for row in living(dated, after_everything, corrections_within=corrections_within)
    ]


def _order(row: Version) -> tuple[int, int, int]:
    assert row.available_at is not None
    return row.version, row.available_at, row.tie


def _time_order(row: Version) -> tuple[int, int, int, int]:
    assert row.event_time is not None
    assert row.available_at is not None
    return row.event_time, row.available_at, row.version, row.tie


def value_at(
    rows: Sequence[Version],
    operation: str,
    key: tuple[Any, ...],
    at: int,
    *,
    start: int | None,
    end: int = 0,
    as_of: int | None = None,
    n: int = 1,
    prior: float = 0.0,
    weight: float = 0.0,
    corrections_within: int | None = None,
) -> Value:
    """Give one aggregate of one entity at one moment.

    Args:
        rows: all row versions there ever were.
        operation: the aggregation.
        key: the entity asked about.
        at: the moment, in microseconds.
        start, end: the window is [at + start, at + end); a start of None is the beginning of time.
        as_of: rows readable before this count; the moment itself by default.
        n: of last_n.
        prior, weight: of ratio.
        corrections_within: for how long corrections of a fact count, in microseconds; for ever by default.

    Raises:
        AsOfError: the sum of a column without fractions, or of a decimal in its smallest unit, does not fit 64 bits.
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
    in_time_order = sorted(inside, key=_time_order)
    values = [_one_form(row.value) for row in in_time_order if row.value is not None]
    match operation:
        case "count":
            return len(inside)
        case "exists":
            return len(inside) > 0
        case "age":
            return (at - in_time_order[-1].event_time) / 1e6 if inside else None  # type: ignore[operator] # none is None
        case "nunique":
            return len({_nan_is_greatest(value) for value in values})
        case "ratio":
            seconds = [_one_form(row.second) for row in inside if row.second is not None]
            below = _sum_as_float(seconds) + weight
            return None if below == 0 else _one_form((_sum_as_float(values) + prior * weight) / below)
        case "var" | "std" if len(values) < 2:
            return None
        case "var":
            return exact_variance(values)
        case "std":
            return math.sqrt(exact_variance(values))
        case _ if not values:
            return None
        case "sum":
            return exact_sum(values)
        case "mean":
            return _one_form(_sum_as_float(values) / len(values))
        case "min":
            return min(values, key=_nan_is_greatest)
        case "max":
            return max(values, key=_nan_is_greatest)
        case "first":
            return values[0]
        case "last":
            return values[-1]
        case "last_n":
            return values[-n:]
        case _:
            raise ValueError(operation)


def exact_sum(values: Sequence[Any]) -> int | float | Decimal:
    """Give the sum of integers, booleans or decimals, or the float64 nearest to the sum of floats.

    Raises:
        AsOfError: what is no float does not fit 64 bits.
    """
    if any(isinstance(value, float) for value in values):
        lost = _not_finite(values)
        return _nearest(sum(map(Fraction, values), Fraction(0))) if lost is None else lost
    if any(isinstance(value, Decimal) for value in values):
        scale = -values[0].as_tuple().exponent
        smallest_units = sum(int(Fraction(value) * 10**scale) for value in values)
        return Decimal((smallest_units < 0, _digits(_fitting(smallest_units)), -scale))
    return _fitting(sum(int(value) for value in values))


def exact_variance(values: Sequence[Any]) -> float:
    """Give the float64 nearest to the sample variance of at least two values; decimals count as their nearest float64."""
    numbers = [float(value) if isinstance(value, Decimal) else value for value in values]
    if _not_finite(numbers) is not None:
        return math.nan
    mean = sum(map(Fraction, numbers), Fraction(0)) / len(numbers)
    return _nearest(sum((Fraction(number) - mean) ** 2 for number in numbers) / Fraction(len(numbers) - 1))


def _sum_as_float(values: Sequence[Any]) -> float:
    """Give the float64 nearest to the exact sum; 0.0 of nothing."""
    return _nearest(Fraction(total)) if math.isfinite(total := exact_sum(values)) else float(total)


def _not_finite(values: Sequence[Any]) -> float | None:
    """Give what values with a NaN or an infinity among them add up to; None when all are finite."""
    if any(math.isnan(value) for value in values) or {math.inf, -math.inf} <= set(values):
        return math.nan
    return next((infinity for infinity in (math.inf, -math.inf) if infinity in values), None)


def _nearest(number: Fraction) -> float:
    """Give the nearest float64: Python divides two integers exactly and rounds once."""
    try:
        return float(number)
    except OverflowError:
        return math.inf if number > 0 else -math.inf


def _fitting(number: int) -> int:
    if not -(2**63) <= number < 2**63:
        raise AsOfError(f"The sum {number} does not fit 64 bits.", do="see the engine's message.")
    return number


def _digits(number: int) -> tuple[int, ...]:
    return tuple(map(int, str(abs(number))))


def _one_form(value: Any) -> Any:
    if isinstance(value, float):
        return math.nan if math.isnan(value) else value + 0.0
    return value


def _nan_is_greatest(value: Any) -> tuple[bool, Any]:
    """Something to compare values by; Python compares texts by code points."""
    lost = isinstance(value, float) and math.isnan(value)
    return (lost, 0 if lost else value)
