"""Feature columns -> the one matrix of float64 that an estimator sees, in training and in serving."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sameworld.asof.column import ArrowColumn, Column
from sameworld.asof.request import feature_columns
from sameworld.asof.values import float_column
from sameworld.definitions.feature import Category, Feature

_FEW = 32


class ColumnEncoding(msgspec.Struct, frozen=True, dict=True):
    """How one feature column becomes numbers.

    Args:
        name: the column.
        categories: the values seen in training, sorted; a category's number is its place. Unseen values and nulls are both NaN. None for a number.
    """

    name: str
    categories: list[Any] | None = None

    @functools.cached_property
    def numbers(self) -> dict[Any, float]:
        """Category -> number, for looking a few up one by one, which is cheaper then."""
        return {category: float(number) for number, category in enumerate(self.categories or [])}

    @functools.cached_property
    def known(self) -> pa.Array:
        """The categories as a set to look values up in."""
        return pa.array(self.categories)


def learn(
    features: Mapping[str, Feature], columns: Mapping[str, pa.Array], rows: NDArray[np.bool_]
) -> list[ColumnEncoding]:
    """Learn the encoding from the training rows alone. A list or a timestamp is an input of derived features and no column of the matrix."""
    seen = pa.array(rows)
    return [
        ColumnEncoding(
            name,
            sorted(pc.unique(_comparable(columns[name]).filter(seen).drop_null()).to_pylist())
            if isinstance(features[feature], Category)
            else None,
        )
        for name, feature in feature_columns(features)
        if not (pa.types.is_list(columns[name].type) or pa.types.is_timestamp(columns[name].type))
    ]


def _comparable(column: pa.Array) -> pa.Array:
    """Give decimals as float64, which JSON can carry and an estimator can count with; all else as it is."""
    return float_column(column) if pa.types.is_decimal(column.type) else column


def matrix(encodings: Sequence[ColumnEncoding], columns: Mapping[str, pa.Array]) -> NDArray[np.float64]:
    """Give the matrix of arrays; see `matrix_of`."""
    return matrix_of(
        encodings, {encoding.name: ArrowColumn(columns[encoding.name]) for encoding in encodings}
    )


def matrix_of(encodings: Sequence[ColumnEncoding], columns: Mapping[str, Column]) -> NDArray[np.float64]:
    """Give shape (rows, columns), C order: numbers as the nearest float64, booleans 0 and 1, categories their number, NaN for null."""
    numbers = [
        columns[encoding.name].floats()
        if encoding.categories is None
        else _codes(encoding, columns[encoding.name])
        for encoding in encodings
    ]
    return np.ascontiguousarray(np.concatenate(numbers).reshape(len(numbers), -1).T)


def _codes(encoding: ColumnEncoding, column: Column) -> NDArray[np.float64]:
    if isinstance(column, ArrowColumn):
        array = _comparable(column.arrow())
        if len(array) > _FEW:
            known = encoding.known if len(encoding.known) else pa.array([], array.type)
            return ArrowColumn(pc.index_in(array, value_set=known, skip_nulls=True)).floats()
        values = array.to_pylist()
    else:
        values = column.plain()
    return np.array([encoding.numbers.get(value, np.nan) for value in values], np.float64)
