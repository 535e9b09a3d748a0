"""One input of prepared rows as the kernel takes it: int64 words whatever the type, and which rows take part."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

_FLOAT, _WORD = struct.Struct("<d"), struct.Struct("<q")


@dataclass(frozen=True)
class InputColumn:
    """One input of sorted rows.

    Args:
        family: the family of its values; None for an input that only counts rows.
        words: shape (rows,), int64: integers, booleans, instants and unscaled decimals as they are, float64's bits in their one form, and for texts
            their place in `texts`; undefined where a row does not take part; empty when there is no family.
        valid: shape (rows,), uint8: 1 where the row takes part.
        texts: the texts there are, in the order of their code points.
    """

    family: str | None
    words: NDArray[np.int64]
    valid: NDArray[np.uint8]
    texts: pa.Array | None = None

    @property
    def is_float(self) -> bool:
        return self.family == "float"

    def as_texts(self) -> list[str | None]:
        """Give a text input's values row by row."""
        assert self.texts is not None
        kept = pa.array(self.words, mask=self.valid == 0)
        return self.texts.take(kept).to_pylist()


NO_WORDS = np.zeros(0, np.int64)


def normalised(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Give floats their one form: -0.0 becomes 0.0, every NaN the same NaN."""
    result = values + 0.0
    lost = np.isnan(result)
    if lost.any():
        result[lost] = np.nan
    return result


def input_column(family: str | None, column: pa.Array | pa.ChunkedArray) -> InputColumn:
    """Give one input as the kernel takes it, from column `input_..` of prepared rows (see `rows.input_sql`)."""
    if isinstance(column, pa.ChunkedArray):
        column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    texts = Texts() if family == "text" else None
    words, valid = input_words(family, column, texts)
    return InputColumn(family, words, valid) if texts is None else texts.column(words, valid)


def input_words(
    family: str | None, column: pa.Array, texts: Texts | None
) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Give a part of an input's words and which rows take part; words of texts are numbers in `texts`, not yet in order."""
    if family is None:
        return NO_WORDS, column.to_numpy(zero_copy_only=False).astype(np.uint8)
    valid = (
        column.is_valid().to_numpy(zero_copy_only=False).astype(np.uint8)
        if column.null_count
        else np.ones(len(column), np.uint8)
    )
    if texts is not None:
        return texts.numbers(column), valid
    filled = column.fill_null(False if family == "boolean" else 0) if column.null_count else column
    numbers: NDArray[Any] = filled.to_numpy(zero_copy_only=False)
    if family == "float":
        return normalised(numbers.astype(np.float64, copy=False)).view(np.int64), valid
    return numbers.astype(np.int64, copy=False), valid


def word_of(family: str | None, value: Any) -> int | None:
    """Give a single value's word, as `input_words` does for a column; None where the row does not take part, and 0 for a text."""
    if value is None or (family is None and not value):
        return None
    if family == "float":
        return _WORD.unpack(_FLOAT.pack(value + 0.0 if value == value else np.nan))[0]  # noqa: PLR0124 # NaN
    return 0 if family in (None, "text") else int(value)


class Texts:
    """The different texts of an input, numbered as they come."""

    def __init__(self) -> None:
        self._known = pa.array([], pa.string())
        self._ordered = (self._known, np.zeros(1, np.int64), self._known)

    def numbers(self, column: pa.Array) -> NDArray[np.int64]:
        """Give each row's number; 0 where null."""
        coded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
        words = coded.dictionary.cast(pa.string())
        place = pc.index_in(words, self._known)
        fresh = words.filter(place.is_null()) if place.null_count else words[:0]
        if len(fresh):
            self._known = pa.concat_arrays([self._known, fresh])
            place = pc.index_in(words, self._known)
        if len(words) == 0:
            return np.zeros(len(column), np.int64)
        return place.to_numpy(zero_copy_only=False).astype(np.int64)[coded.indices.fill_null(0).to_numpy()]

    def column(self, words: NDArray[np.int64], valid: NDArray[np.uint8]) -> InputColumn:
        """Give the input, its texts in order. Arrow orders texts by their UTF-8 bytes, which is the order of code points."""
        known, place, texts = self._ordered
        if known is not self._known:
            known = self._known
            order = pc.sort_indices(known).to_numpy()
            place = np.zeros(max(order.shape[0], 1), np.int64)
            place[order] = np.arange(order.shape[0])
            texts = known.take(pa.array(order))
            self._ordered = known, place, texts
        return InputColumn("text", place[words], valid, texts)
