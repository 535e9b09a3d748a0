"""From what the kernel keeps of a window to the value people see: rounding, null rules and types, once for every engine and store."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sameworld.asof.columns import InputColumn, normalised
from sameworld.asof.schema import scale_of, value_type
from sameworld.errors import AsOfError

_EXACT_IN_FLOAT = 1 << 53


@dataclass(frozen=True)
class Got:
    """What the kernel gives for one window of one aggregation.

    Args:
        operation: the aggregation's name, for messages.
        column: the input it was read from.
        out: shape (moments,): how many rows took part (SUM, SQUARES, COUNT, DISTINCT; MIN, MAX: more than 0 where there is one), or the
            row (FIRST, LAST), -1 where there is none; LATEST: shape (moments, n), the latest row first.
        words: shape (moments,): the sum or the extreme as a word of the column's kind, SQUARES: the variance's bits; empty for the others.
        event: shape (rows,), microseconds.
        at: shape (moments,), microseconds.
        arguments: the aggregation's.
        second: the same of a further input, where the aggregation has one.
    """

    operation: str
    column: InputColumn
    out: NDArray[np.int64]
    words: NDArray[np.int64]
    event: NDArray[np.int64]
    at: NDArray[np.int64]
    arguments: tuple[Any, ...] = ()
    second: Got | None = None


def count(got: Got) -> pa.Array:
    return pa.array(np.ascontiguousarray(got.out))


def exists(got: Got) -> pa.Array:
    return pa.array(got.out > 0)


def total(got: Got) -> pa.Array:
    _check_range(got)
    family = "integer" if got.column.family == "boolean" else str(got.column.family)
    return values_of(family, got.words, None, got.out == 0)


def mean(got: Got) -> pa.Array:
    none = got.out == 0
    return _floats(_total_as_float(got) / np.where(none, 1, got.out), none)


def variance(got: Got) -> pa.Array:
    return _floats(got.words.view(np.float64), got.out < 2)


def deviation(got: Got) -> pa.Array:
    return _floats(np.sqrt(np.maximum(got.words.view(np.float64), 0.0)), got.out < 2)


def ratio(got: Got) -> pa.Array:
    assert got.second is not None
    _, prior, weight = got.arguments
    with np.errstate(
        over="ignore", invalid="ignore"
    ):  # of infinities, and beyond the largest float64: values like others
        above = np.where(got.out == 0, 0.0, _total_as_float(got)) + prior * weight
        below = np.where(got.second.out == 0, 0.0, _total_as_float(got.second)) + weight
        return _floats(above / np.where(below == 0, 1.0, below), below == 0)


def extreme(got: Got) -> pa.Array:
    return values_of(str(got.column.family), got.words, got.column.texts, got.out <= 0)


def of_row(got: Got) -> pa.Array:
    none = got.out < 0
    words = got.column.words
    taken = words[np.where(none, 0, got.out)] if words.shape[0] else np.zeros(none.shape[0], np.int64)
    return values_of(str(got.column.family), taken, got.column.texts, none)


def of_rows(got: Got) -> pa.Array:
    """Lists; shape (moments, n) of rows, the latest first, becomes the latest last."""
    earliest_first = got.out[:, ::-1]
    there = earliest_first >= 0
    lengths = there.sum(axis=1)
    rows = earliest_first[there]
    family = str(got.column.family)
    flat = values_of(family, got.column.words[rows], got.column.texts, np.zeros(rows.shape[0], np.bool_))
    ends = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    lists = pa.ListArray.from_arrays(pa.array(ends), flat, mask=pa.array(lengths == 0))
    return lists.cast(value_type(f"list of {family}"))


def age(got: Got) -> pa.Array:
    none = got.out < 0
    event = got.event[np.where(none, 0, got.out)] if got.event.shape[0] else np.zeros(none.shape[0], np.int64)
    return pa.array((got.at - event) / 1e6, mask=none)


def values_of(
    family: str, words: NDArray[np.int64], texts: pa.Array | None, none: NDArray[np.bool_]
) -> pa.Array:
    """Give words as values of their family; null where `none`."""
    words = np.ascontiguousarray(words)
    if family == "float":
        return _floats(words.view(np.float64), none)
    if family == "boolean":
        return pa.array(words != 0, mask=none)
    if family == "text":
        if texts is None or len(texts) == 0:
            return pa.nulls(words.shape[0], pa.string())
        return texts.take(pa.array(words, mask=none))
    if scale_of(family) is not None:
        wide = np.empty((words.shape[0], 2), np.int64)
        wide[:, 0], wide[:, 1] = words, words >> 63
        mask = pa.array(~none).buffers()[1] if none.any() else None
        return pa.Array.from_buffers(value_type(family), words.shape[0], [mask, pa.py_buffer(wide)])
    return pa.array(words, type=value_type(family), mask=none)


def _floats(numbers: NDArray[np.float64], none: NDArray[np.bool_]) -> pa.Array:
    return pa.array(normalised(np.ascontiguousarray(numbers)), mask=none)


def _total_as_float(got: Got) -> NDArray[np.float64]:
    """The float64 nearest to the exact sum; for integers and booleans NumPy's conversion of the int64 is that."""
    if got.column.is_float:
        return got.words.view(np.float64)
    _check_range(got)
    return as_float(str(got.column.family), got.words)


def nearest_floats(column: pa.Array) -> NDArray[np.float64]:
    """Give a column of numbers, booleans or instants as the nearest float64, NaN for null. (Arrow's own cast of decimals is a bit off for many.)"""
    if not pa.types.is_decimal(column.type):
        plain = column.cast(pa.int64()) if pa.types.is_timestamp(column.type) else column
        return plain.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    if len(column) == column.null_count:
        return np.full(len(column), np.nan)
    if column.type.bit_width != 128:
        column = column.cast(pa.decimal128(column.type.precision, column.type.scale))
    wide = np.frombuffer(column.buffers()[1], np.int64).reshape(-1, 2)
    words = wide[column.offset : column.offset + len(column), 0]
    result = as_float(f"decimal({column.type.scale})", words)
    result[column.is_null().to_numpy(zero_copy_only=False)] = np.nan
    return result


def float_column(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Give `nearest_floats` as a column, with its nulls; a NaN is a value."""
    if isinstance(column, pa.ChunkedArray):
        column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    return pa.array(nearest_floats(column), mask=column.is_null().to_numpy(zero_copy_only=False))


def as_float(family: str, words: NDArray[np.int64]) -> NDArray[np.float64]:
    """Give the float64 nearest to integers, booleans, instants or unscaled decimals."""
    numbers = words.astype(np.float64)
    scale = scale_of(family)
    if not scale:
        return numbers
    numbers /= 10.0**scale
    # Both sides of that division were exact, and so it was rounded once, unless the integer has more bits than a float64.
    for place in np.flatnonzero(np.abs(words) > _EXACT_IN_FLOAT):
        numbers[place] = float(Fraction(int(words[place]), 10**scale))
    return numbers


def _check_range(got: Got) -> None:
    if (got.out < 0).any():
        place = int(np.argmax(got.out < 0))
        raise AsOfError(
            f"The exact {got.operation} of a column without fractions does not fit 64 bits.",
            where=f"moment {place}, at {int(got.at[place])} microseconds since 1970",
            expected="a sum within int64",
            do="sum a DOUBLE column instead (cast it in the source's query), or use a shorter window.",
        )
