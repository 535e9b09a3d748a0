"""From what the kernel keeps of a window to the value people see: rounding, null rules and types, once for every engine and store."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numba
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sameworld.asof.columns import InputColumn
from sameworld.asof.compiled import compiled
from sameworld.asof.schema import scale_of, value_type
from sameworld.errors import AsOfError

_EXACT_IN_FLOAT = 1 << 53


# How a value is made of what the kernel keeps. NUMBER: how many; THERE: whether any; TOTAL: the word, an exact sum; WORD: the word, whatever it is;
# MEAN: a sum by how many; ROOT: the word's square root; RATIO: two sums with a prior; AGE: seconds since the word; LIST: the words of several rows.
NUMBER, THERE, TOTAL, WORD, MEAN, ROOT, RATIO, AGE, LIST = range(9)

_words = numba.types.Array(numba.int64, 1, "C", readonly=True)
_table = numba.types.Array(numba.int64, 2, "A", readonly=True)
_numbers = numba.types.Array(numba.float64, 2, "C", readonly=True)
ALL = np.zeros(0, np.int64)
"""As rows of `make_values`: each value is of its own."""
HOW = 6
"""How many numbers say how a window's values are made."""


class Value(NamedTuple):
    """How an aggregation's value is made: see NUMBER and what follows it; and the least of `out` for which there is one."""

    how: int
    least: int = -(2**63)


@compiled()
def _normalised(number: float) -> float:
    return number + 0.0 if number == number else np.nan  # noqa: PLR0124 # NaN


@compiled()
def _number(word: int, is_float: int) -> float:
    return np.int64(word).view(np.float64) if is_float else np.float64(word)


@compiled(
    numba.int64(
        numba.types.Array(numba.int64, 2, "C", readonly=True), _numbers, _words, _table, _table, _words, numba.int64[:, ::1], numba.bool_[:, ::1]
    ))  # fmt: skip
def make_values(
    how: NDArray[np.int64],
    numbers: NDArray[np.float64],
    rows: NDArray[np.int64],
    out: NDArray[np.int64],
    words: NDArray[np.int64],
    at: NDArray[np.int64],
    values: NDArray[np.int64],
    none: NDArray[np.bool_],
) -> int:
    """Make values of what the kernel keeps: rounding, null rules and the one form of floats.

    Args:
        how: shape (windows, 6): how, the least of `out`, the column of `out` and `words`, whether words are float64's bits, and both again for a
            further input.
        numbers: shape (windows, 2): of a ratio the prior times the weight, and the weight.
        rows: which row of `out` each value is of; each its own when empty.
        out, words: shape (rows, columns): how many rows took part, or -1 where there is none (FIRST, LAST); and words, float64's bits among them.
        at: shape (moments,), microseconds.
        values, none: shape (windows, moments), written: bits of float64 or integers; where there is no value.

    Returns:
        -1, or the moment of the first exact sum that does not fit 64 bits.
    """
    wrong = -1
    for window in range(how.shape[0]):
        kind, least, place, is_float, second, second_is_float = how[window]
        for moment in range(values.shape[1]):
            row = rows[moment] if rows.shape[0] else moment
            count, word = out[row, place], words[row, place] if words.shape[0] else 0
            there, bits = count >= least, np.int64(0)
            if count < 0 and kind in (TOTAL, MEAN, RATIO):
                wrong = moment if wrong < 0 else wrong
            if kind == NUMBER:
                bits = count
            elif kind == THERE:
                bits = np.int64(count > 0)
            elif kind == RATIO:
                other = out[row, second]
                if other < 0:
                    wrong = moment if wrong < 0 else wrong
                above = (_number(word, is_float) if count else 0.0) + numbers[window, 0]
                below = (_number(words[row, second], second_is_float) if other else 0.0) + numbers[window, 1]
                there = below != 0.0
                if there:
                    bits = np.float64(_normalised(above / below)).view(np.int64)
            elif there:
                if kind == MEAN:
                    bits = np.float64(_normalised(_number(word, is_float) / count)).view(np.int64)
                elif kind == ROOT:
                    bits = np.float64(_normalised(np.sqrt(max(_number(word, 1), 0.0)))).view(np.int64)
                elif kind == AGE:
                    bits = np.float64((at[moment] - word) / 1e6).view(np.int64)
                elif is_float:
                    bits = np.float64(_normalised(_number(word, 1))).view(np.int64)
                else:
                    bits = word
            values[window, moment], none[window, moment] = bits, not there
    return wrong


def to_floats(value: Value, family: str | None) -> bool:
    """Whether words of a family go to `make_values` as float64: those of decimals whose value is one."""
    return value.how in (MEAN, RATIO) and scale_of(str(family)) is not None


def how_of(value: Value, families: Sequence[str | None], places: Sequence[int]) -> list[int]:
    """Give a window's `how` for `make_values`; see `to_floats`."""
    floats = [int(family == "float" or to_floats(value, family)) for family in families]
    if value.least == 2:  # a variance is one, whatever it is of
        floats[0] = 1
    return [*value, places[0], floats[0], *((places[1], floats[1]) if len(places) > 1 else (0, 0))]


def numbers_of(value: Value, arguments: tuple[Any, ...]) -> list[float]:
    """Give a window's `numbers` for `make_values`."""
    if value.how != RATIO:
        return [0.0, 0.0]
    _, prior, weight = arguments
    return [prior * weight, float(weight)]


def does_not_fit(operation: str, moment: int, at: int) -> AsOfError:
    """Give the error of an exact sum that is too large."""
    return AsOfError(
        f"The exact {operation} of a column without fractions does not fit 64 bits.",
        where=f"moment {moment}, at {at} microseconds since 1970",
        expected="a sum within int64",
        do="sum a DOUBLE column instead (cast it in the source's query), or use a shorter window.",
    )


def array_of(
    operation: str,
    value: Value,
    kind: pa.DataType,
    columns: Sequence[InputColumn],
    kept: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]],
    at: NDArray[np.int64],
    arguments: tuple[Any, ...] = (),
) -> pa.Array:
    """Give one window's values of an aggregation as an array of its type.

    Args:
        operation, value: the aggregation.
        kind: the values' type.
        columns: its inputs.
        kept: what the kernel keeps of each: shape (moments,) both, or for a LIST (moments, n) rows, the latest first, and nothing.
        at: shape (moments,), microseconds.
        arguments: the aggregation's.
    """
    if value.how == LIST:
        return _lists(columns[0], kept[0][0], kind)
    families = [column.family for column in columns]
    how = how_of(value, families, range(len(columns)))
    outs = [out for out, _ in kept]
    words = [
        as_float(str(column.family), some).view(np.int64) if to_floats(value, column.family) else some
        for column, (_, some) in zip(columns, kept, strict=True)
    ]
    made, none = np.empty((1, at.shape[0]), np.int64), np.empty((1, at.shape[0]), np.bool_)
    numbers = np.array([numbers_of(value, arguments)], np.float64)
    wrong = make_values(
        np.array([how], np.int64), numbers, ALL, _beside(outs), _beside(words), at, made, none
    )
    if wrong >= 0:
        raise does_not_fit(operation, wrong, int(at[wrong]))
    return _array(made[0], none[0], kind, columns[0].texts)


def _beside(columns: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    return columns[0].reshape(-1, 1) if len(columns) == 1 else np.stack(columns, axis=1)


def _array(
    words: NDArray[np.int64], none: NDArray[np.bool_], kind: pa.DataType, texts: pa.Array | None
) -> pa.Array:
    if pa.types.is_string(kind):
        if texts is None or len(texts) == 0:
            return pa.nulls(words.shape[0], pa.string())
        return texts.take(pa.array(words, mask=none))
    if pa.types.is_decimal(kind):
        wide = np.empty((words.shape[0], 2), np.int64)
        wide[:, 0], wide[:, 1] = words, words >> 63
        mask = pa.array(~none).buffers()[1] if none.any() else None
        return pa.Array.from_buffers(kind, words.shape[0], [mask, pa.py_buffer(wide)])
    return pa.array(as_numbers(words, kind), type=kind, mask=none if none.any() else None)


def as_numbers(words: NDArray[np.int64], kind: pa.DataType) -> NDArray[Any]:
    """Give values that `make_values` made as numbers of their type."""
    if pa.types.is_floating(kind):
        return words.view(np.float64)
    return words != 0 if pa.types.is_boolean(kind) else words


def _lists(column: InputColumn, out: NDArray[np.int64], kind: pa.DataType) -> pa.Array:
    """Give lists; shape (moments, n) of rows, the latest first, becomes the latest last."""
    earliest_first = out[:, ::-1]
    there = earliest_first >= 0
    lengths = there.sum(axis=1)
    words = column.words[earliest_first[there]]
    flat = _array(words, np.zeros(words.shape[0], np.bool_), value_type(str(column.family)), column.texts)
    ends = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(ends), flat, mask=pa.array(lengths == 0)).cast(kind)


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
