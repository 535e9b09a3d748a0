"""One column of values on its way from requests and rows to estimators and logs: in whatever form it came, and in whatever form it is wanted.

A server answers one request at a time or sixty; making an Arrow array of every column of each would cost it more than all else. So values that a number
of columns have in one block stay there, and each form is made once for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from decimal import Decimal
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sameworld.asof.columns import normalised
from sameworld.asof.schema import VALUE_TYPES
from sameworld.asof.values import float_column

Floats = NDArray[np.float64]


class Column(Protocol):
    """Values of one column, one a row."""

    @property
    def type(self) -> pa.DataType: ...

    def arrow(self) -> pa.Array:
        """Give them as Arrow has them."""
        ...

    def floats(self) -> Floats:
        """Give numbers and booleans as the nearest float64, NaN for null; a view that is not to be written to."""
        ...

    def plain(self) -> Sequence[Any]:
        """Give them as plain values, to the bit: None for null, instants in microseconds, decimals as text."""
        ...

    def one_form(self) -> Column:
        """Give them with one NaN and one zero, wherever floats come from."""
        ...

    def take(self, rows: Sequence[int]) -> Column:
        """Give some of its rows."""
        ...


class ArrowColumn:
    """A column that came as Arrow."""

    __slots__ = ("_array", "type")

    def __init__(self, array: pa.Array) -> None:
        self._array = array
        self.type = array.type

    def arrow(self) -> pa.Array:
        return self._array

    def floats(self) -> Floats:
        array = self._array
        if pa.types.is_decimal(self.type):
            return float_column(array).to_numpy(zero_copy_only=False)
        if pa.types.is_boolean(self.type):
            array = array.cast(pa.int8())
        # Integers with nulls come as float64 with NaN, without nulls as integers: the copy rounds both alike.
        return array.to_numpy(zero_copy_only=False).astype(np.float64, copy=False)

    def plain(self) -> Sequence[Any]:
        return plain(self._array)

    def one_form(self) -> Column:
        array = self._array
        if not pa.types.is_floating(self.type):
            return self
        return ArrowColumn(
            pa.array(
                normalised(array.fill_null(0.0).to_numpy(zero_copy_only=False)),
                mask=array.is_null().to_numpy(zero_copy_only=False),
            )
        )

    def take(self, rows: Sequence[int]) -> Column:
        return ArrowColumn(self._array.take(pa.array(rows, pa.int64())))


class PlainColumn:
    """A column that came as plain values, such as the texts of requests; instants in microseconds."""

    __slots__ = ("_values", "type")

    def __init__(self, values: Sequence[Any], kind: pa.DataType) -> None:
        self._values = values
        self.type = kind

    def arrow(self) -> pa.Array:
        return pa.array(self._values, self.type)

    def floats(self) -> Floats:
        return ArrowColumn(self.arrow()).floats()

    def plain(self) -> Sequence[Any]:
        return self._values

    def one_form(self) -> Column:
        return ArrowColumn(self.arrow()).one_form() if pa.types.is_floating(self.type) else self

    def take(self, rows: Sequence[int]) -> Column:
        return PlainColumn([self._values[row] for row in rows], self.type)


class Block:
    """The values of several columns of one type: float64, int64 or boolean.

    Args:
        kind: the columns' type.
        values: shape (columns, rows); floats in their one form.
        none: the same, where a value is null; None where none is.
    """

    __slots__ = ("_floats", "_plain", "kind", "none", "values")

    def __init__(self, kind: pa.DataType, values: NDArray[Any], none: NDArray[np.bool_] | None) -> None:
        self.kind = kind
        self.values = values
        # Of a few values this is four times as fast as `any`, and blocks are small.
        self.none = none if none is not None and b"\1" in none.tobytes() else None
        self._floats: Floats | None = None
        self._plain: list[list[Any]] | None = None

    def columns(self) -> list[Column]:
        """Give its columns."""
        return [BlockColumn(self, place) for place in range(self.values.shape[0])]

    def floats(self) -> Floats:
        """Give all of them as `Column.floats` does."""
        if self._floats is None:
            self._floats = self.values.astype(np.float64, copy=self.none is not None)
            if self.none is not None:
                self._floats[self.none] = np.nan
        return self._floats

    def plain(self) -> list[list[Any]]:
        """Give all of them as `Column.plain` does."""
        if self._plain is None:
            plain: list[list[Any]] = self.values.tolist()
            if self.none is not None:
                for column, row in zip(*(places.tolist() for places in self.none.nonzero()), strict=True):
                    plain[column][row] = None
            self._plain = plain
        return self._plain


class BlockColumn:
    """One of a block's."""

    __slots__ = ("_block", "_place", "type")

    def __init__(self, block: Block, place: int) -> None:
        self._block = block
        self._place = place
        self.type = block.kind

    def arrow(self) -> pa.Array:
        block, place = self._block, self._place
        none = None if block.none is None else block.none[place]
        return pa.array(np.ascontiguousarray(block.values[place]), self.type, mask=none)

    def floats(self) -> Floats:
        return self._block.floats()[self._place]

    def plain(self) -> Sequence[Any]:
        return self._block.plain()[self._place]

    def one_form(self) -> Column:
        return self  # as its block was given it

    def take(self, rows: Sequence[int]) -> Column:
        block, place = self._block, self._place
        none = None if block.none is None else block.none[place : place + 1, rows]
        return BlockColumn(Block(self.type, block.values[place : place + 1, rows], none), 0)


def null_column(kind: pa.DataType, rows: int) -> Column:
    """Give a column of nulls."""
    return ArrowColumn(pa.nulls(rows, kind))


class RequestLayout:
    """Where the fields of requests go: those of one family into one block.

    Args:
        fields: request field -> family, a key of `schema.VALUE_TYPES`; in the order of a request's values.
        wanted: which of them.
    """

    def __init__(self, fields: Mapping[str, str], wanted: Collection[str]) -> None:
        self._families: dict[str, list[tuple[int, str]]] = {}
        for place, (name, family) in enumerate(fields.items()):
            if name in wanted:
                self._families.setdefault(family, []).append((place, name))

    def columns(self, rows: Sequence[Sequence[Any]]) -> dict[str, Column]:
        """Give the wanted fields of requests (at least one) as columns.

        Args:
            rows: one a request, a value a field; instants in microseconds.
        """
        values = list(zip(*rows, strict=True))
        result: dict[str, Column] = {}
        for family, fields in self._families.items():
            taken = [values[place] for place, _ in fields]
            kind = VALUE_TYPES[family]
            if family == "text":
                columns: list[Column] = [PlainColumn(column, kind) for column in taken]
            else:
                columns = _block(family, kind, taken).columns()
            result.update(zip((name for _, name in fields), columns, strict=True))
        return result


def _block(family: str, kind: pa.DataType, values: Sequence[Sequence[Any]]) -> Block:
    if family == "float":
        numbers = np.array(values, np.float64)  # None becomes NaN
        some = np.isnan(numbers).any()
        return Block(kind, normalised(numbers), _nulls(values) if some else None)
    none = _nulls(values)
    dtype = np.bool_ if family == "boolean" else np.int64
    if not none.any():
        return Block(kind, np.array(values, dtype), None)
    filled = [[0 if value is None else value for value in column] for column in values]
    return Block(kind, np.array(filled, dtype), none)


def _nulls(values: Sequence[Sequence[Any]]) -> NDArray[np.bool_]:
    return np.array([[value is None for value in column] for column in values], np.bool_)


def plain(array: pa.Array) -> list[Any]:
    """Give an array as `Column.plain` does."""
    if _has(array.type, pa.types.is_timestamp):
        array = array.cast(pa.list_(pa.int64()) if pa.types.is_list(array.type) else pa.int64())
    values = array.to_pylist()
    return _each(values, str) if _has(array.type, pa.types.is_decimal) else values


def of_plain(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """Give the array of what `plain` gave."""
    return pa.array(_each(values, Decimal) if _has(kind, pa.types.is_decimal) else list(values), kind)


def _has(kind: pa.DataType, is_one: Callable[[pa.DataType], bool]) -> bool:
    """Whether values of this type are, or are lists of, what is asked about."""
    return is_one(kind.value_type if pa.types.is_list(kind) else kind)


def _each(values: Sequence[Any], change: Callable[[Any], Any]) -> list[Any]:
    return [
        None if value is None else _each(value, change) if isinstance(value, list) else change(value)
        for value in values
    ]
