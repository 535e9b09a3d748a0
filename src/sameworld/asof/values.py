"""From what the kernel keeps of a window to the value people see: rounding, null rules and types, once for every engine and store."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sameworld.asof.columns import InputColumn, normalised
from sameworld.asof.schema import scale_of, value_type
from sameworld.errors import AsOfError

_EXACT_IN_FLOAT = 1 << 53
_FLOAT, _INTEGER, _BOOLEAN = value_type("float"), value_type("integer"), value_type("boolean")


class Got(msgspec.Struct, gc=False):
    """What the kernel gives for windows of one aggregation; arrays have one shape, (moments,) or (windows, moments).

    Args:
        operation: the aggregation's name, for messages.
        family: of the values of its input; None for one that only counts rows.
        out: how many rows took part (SUM, SQUARES, COUNT, DISTINCT; MIN, MAX: more than 0 where there is one), or the row (FIRST, LAST), -1 where
            there is none; LATEST: shape (moments, n), the latest row first.
        words: the sum or the extreme as a word of the input's kind, SQUARES: the variance's bits, FIRST, LAST: the row's word, or its event time in
            microseconds where the input only counts rows; empty for the others.
        at: shape (moments,), microseconds.
        arguments: the aggregation's.
        second: the same of a further input, where the aggregation has one.
        column: the input itself; None where words say all there is to its values.
    """

    operation: str
    family: str | None
    out: NDArray[np.int64]
    words: NDArray[np.int64]
    at: NDArray[np.int64]
    arguments: tuple[Any, ...] = ()
    second: Got | None = None
    column: InputColumn | None = None


class Values(msgspec.Struct, gc=False):
    """Values of windows in the shape of what they were read from.

    Args:
        kind: their type.
        values: float64, int64 or boolean; for other types int64 words, and for lists nothing.
        none: where a value is null; None where none is.
        texts: what words of texts are places of.
        lists: a list column as it is.
    """

    kind: pa.DataType
    values: NDArray[Any]
    none: NDArray[np.bool_] | None = None
    texts: pa.Array | None = None
    lists: pa.Array | None = None

    @property
    def in_block(self) -> bool:
        """Whether `Block` takes them."""
        return pa.types.is_primitive(self.kind) and not pa.types.is_decimal(self.kind)

    def arrow(self) -> pa.Array:
        """Give values of shape (moments,) as Arrow has them."""
        if self.lists is not None:
            return self.lists
        values, none = np.ascontiguousarray(self.values), self.none
        if pa.types.is_string(self.kind):
            if self.texts is None or len(self.texts) == 0:
                return pa.nulls(values.shape[0], pa.string())
            return self.texts.take(pa.array(values, mask=none))
        if pa.types.is_decimal(self.kind):
            wide = np.empty((values.shape[0], 2), np.int64)
            wide[:, 0], wide[:, 1] = values, values >> 63
            mask = pa.array(~none).buffers()[1] if none is not None and none.any() else None
            return pa.Array.from_buffers(self.kind, values.shape[0], [mask, pa.py_buffer(wide)])
        if values.dtype == np.float64:
            values = normalised(values)
        return pa.array(values, type=self.kind, mask=none)


def count(got: Got) -> Values:
    return Values(_INTEGER, got.out)


def exists(got: Got) -> Values:
    return Values(_BOOLEAN, got.out > 0)


def total(got: Got) -> Values:
    _check_range(got)
    family = "integer" if got.family == "boolean" else str(got.family)
    return _of_words(family, got.words, None, got.out == 0)


def mean(got: Got) -> Values:
    none = got.out == 0
    return Values(_FLOAT, _total_as_float(got) / np.where(none, 1, got.out), none)


def variance(got: Got) -> Values:
    return Values(_FLOAT, got.words.view(np.float64), got.out < 2)


def deviation(got: Got) -> Values:
    return Values(_FLOAT, np.sqrt(np.maximum(got.words.view(np.float64), 0.0)), got.out < 2)


def ratio(got: Got) -> Values:
    assert got.second is not None
    _, prior, weight = got.arguments
    with np.errstate(
        over="ignore", invalid="ignore"
    ):  # of infinities, and beyond the largest float64: values like others
        above = np.where(got.out == 0, 0.0, _total_as_float(got)) + prior * weight
        below = np.where(got.second.out == 0, 0.0, _total_as_float(got.second)) + weight
        return Values(_FLOAT, above / np.where(below == 0, 1.0, below), below == 0)


def extreme(got: Got) -> Values:
    return _of_words(str(got.family), got.words, got.column, got.out <= 0)


def of_row(got: Got) -> Values:
    return _of_words(str(got.family), got.words, got.column, got.out < 0)


def of_rows(got: Got) -> Values:
    """Lists; shape (moments, n) of rows, the latest first, becomes the latest last."""
    assert got.column is not None
    earliest_first = got.out[:, ::-1]
    there = earliest_first >= 0
    lengths = there.sum(axis=1)
    rows = earliest_first[there]
    family = str(got.family)
    none = np.zeros(rows.shape[0], np.bool_)
    flat = _of_words(family, got.column.words[rows], got.column, none).arrow()
    ends = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    lists = pa.ListArray.from_arrays(pa.array(ends), flat, mask=pa.array(lengths == 0))
    kind = value_type(f"list of {family}")
    return Values(kind, got.words, lists=lists.cast(kind))


def age(got: Got) -> Values:
    return Values(_FLOAT, (got.at - got.words) / 1e6, got.out < 0)


def _of_words(
    family: str, words: NDArray[np.int64], column: InputColumn | None, none: NDArray[np.bool_]
) -> Values:
    """Give words as values of their family; null where `none`."""
    if family == "float":
        return Values(_FLOAT, words.view(np.float64), none)
    if family == "boolean":
        return Values(_BOOLEAN, words != 0, none)
    return Values(value_type(family), words, none, column.texts if column is not None else None)


def _total_as_float(got: Got) -> NDArray[np.float64]:
    """The float64 nearest to the exact sum; for integers and booleans NumPy's conversion of the int64 is that."""
    if got.family == "float":
        return got.words.view(np.float64)
    _check_range(got)
    return as_float(str(got.family), got.words)


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
    for place in zip(*(np.abs(words) > _EXACT_IN_FLOAT).nonzero(), strict=True):
        numbers[place] = float(Fraction(int(words[place]), 10**scale))
    return numbers


def _check_range(got: Got) -> None:
    if (got.out < 0).any():
        place = int(np.argwhere(got.out < 0)[0][-1])
        raise AsOfError(
            f"The exact {got.operation} of a column without fractions does not fit 64 bits.",
            where=f"moment {place}, at {int(got.at[place])} microseconds since 1970",
            expected="a sum within int64",
            do="sum a DOUBLE column instead (cast it in the source's query), or use a shorter window.",
        )
