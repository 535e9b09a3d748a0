"""The bytes of one bounded run of an entity's rows, in the order the kernel wants, and nothing else: a layout, not a meaning."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from sameworld.asof.aggregations import NEVER
from sameworld.asof.columns import InputColumn
from sameworld.asof.entity import AVAILABLE, EVENT, SUPERSEDED, TIE, VERSION, Words
from sameworld.asof.plan import Grouping
from sameworld.asof.schema import Schema

_HEAD = 8
_SIGN = 1 << 63
_TIMES, _WORD = struct.Struct("<qq"), struct.Struct("<q")  # event and available of a row of words; any word
_ORDER = struct.Struct("<qq8xqq")  # event, available, version and tie of a row of words

RowWords = NDArray[np.int64]
"""Shape (rows, words)."""
Texts = list[list[Any]]
"""For every input that is text, its value of each row."""


def tie_word(tie: Any) -> Any:
    """Give an unsigned tie as a word in the same order."""
    return tie - _SIGN if isinstance(tie, int) else (tie ^ np.uint64(_SIGN)).view(np.int64)


class Layout:
    """How a grouping's rows are written.

    Args:
        grouping: whose rows.
        schema: its source's pinned schema.
    """

    def __init__(self, grouping: Grouping, schema: Schema) -> None:
        self.words = Words([item.family(schema) for item in grouping.inputs])
        self.texts = [number for number, family in enumerate(self.words.families) if family == "text"]
        self._row_bytes = self.words.width * 8

    def rows(self, order: Sequence[NDArray[Any]], inputs: Sequence[InputColumn]) -> tuple[RowWords, Texts]:
        """Give rows and their texts from columns; `order` is event, available, version and tie."""
        array = np.zeros((len(order[0]), self.words.width), np.int64)
        array[:, SUPERSEDED] = NEVER
        array[:, EVENT], array[:, AVAILABLE], array[:, VERSION] = order[0], order[1], order[2]
        array[:, TIE] = tie_word(np.ascontiguousarray(order[3]))
        texts: Texts = []
        for number, column in enumerate(inputs):
            word, mask = self.words.valid[number]
            array[:, word] |= column.valid.astype(np.int64) * mask
            family = self.words.families[number]
            if family == "text":
                texts.append(column.as_texts())
            elif family is not None:
                array[:, self.words.values[number]] = column.words
        return array, texts

    def row_of(
        self, event: int, available: int, version: int, tie: int, inputs: Sequence[Any]
    ) -> tuple[RowWords, Texts]:
        """Give one row and its texts; inputs are plain values, None for null, a boolean for an input that only counts."""
        row = [0] * self.words.width
        row[EVENT], row[AVAILABLE], row[SUPERSEDED], row[VERSION], row[TIE] = (
            event,
            available,
            NEVER,
            version,
            tie_word(tie),
        )
        texts: Texts = []
        for number, value in enumerate(inputs):
            family = self.words.families[number]
            word, mask = self.words.valid[number]
            if value if family is None else value is not None:
                row[word] |= mask
            if family == "text":
                texts.append([value])
            elif family is not None and value is not None:
                row[self.words.values[number]] = _bits(value) if family == "float" else int(value)
        return np.array([row], np.int64), texts

    def pack(self, rows: RowWords, texts: Texts) -> bytes:
        """Give a chunk's bytes."""
        head = len(rows).to_bytes(_HEAD, "little") + rows.tobytes()
        return head + msgspec.msgpack.encode(texts) if self.texts else head

    def unpack(self, chunk: bytes | memoryview) -> tuple[RowWords, Texts]:
        """Read a chunk's bytes; the rows are a view of them."""
        count = int.from_bytes(chunk[:_HEAD], "little")
        rows = np.frombuffer(chunk, np.int64, count * self.words.width, _HEAD).reshape(
            count, self.words.width
        )
        return rows, (msgspec.msgpack.decode(chunk[_HEAD + count * self._row_bytes :]) if self.texts else [])

    def ends_with(self, chunk: bytes | memoryview, wanted: Mapping[int, int], t: int) -> bool:
        """Whether a chunk's last row has all that is wanted: a single row of each input that is readable at `t`. Most have, and the others can wait."""
        if max(wanted.values()) > 1:
            return False
        count = int.from_bytes(chunk[:_HEAD], "little")
        last = _HEAD + (count - 1) * self._row_bytes
        if not count or not all(time < t for time in _TIMES.unpack_from(chunk, last)):
            return False
        for number in wanted:
            word, mask = self.words.valid[number]
            if not _WORD.unpack_from(chunk, last + 8 * word)[0] & mask:
                return False
        return True

    def insert(self, chunk: bytes, row: RowWords, texts: Texts) -> tuple[bytes, int]:
        """Give a chunk's bytes with one more row in its place, and how many rows there are now."""
        place = count = int.from_bytes(chunk[:_HEAD], "little")
        added = row.tobytes()
        wanted = _ORDER.unpack_from(added)
        while place > 0 and _ORDER.unpack_from(chunk, _HEAD + (place - 1) * self._row_bytes) > wanted:
            place -= 1
        cut, end = _HEAD + place * self._row_bytes, _HEAD + count * self._row_bytes
        head = (count + 1).to_bytes(_HEAD, "little") + chunk[_HEAD:cut] + added + chunk[cut:end]
        if not self.texts:
            return head, count + 1
        old = self.unpack(chunk)[1]
        columns = [
            [*column[:place], *extra, *column[place:]] for column, extra in zip(old, texts, strict=True)
        ]
        return head + msgspec.msgpack.encode(columns), count + 1

    def together(
        self, entities: Sequence[Sequence[bytes | memoryview]]
    ) -> tuple[RowWords, NDArray[np.int64], dict[int, NDArray[Any]]]:
        """Give entities' chunks as one table of rows, where each entity's rows begin and end, and the texts by input."""
        parts: list[bytes | memoryview] = []
        starts, count = [0], 0
        for chunks in entities:
            for chunk in chunks:
                rows = int.from_bytes(chunk[:_HEAD], "little")
                end = _HEAD + rows * self._row_bytes
                if end > len(chunk) or (end < len(chunk) and not self.texts):
                    raise ValueError(f"a chunk of {len(chunk)} bytes says that it has {rows} rows")
                parts.append(chunk[_HEAD:end])
                count += rows
            starts.append(count)
        rows = np.frombuffer(b"".join(parts), np.int64)  # a copy: where chunks lie is not aligned
        texts: dict[int, NDArray[Any]] = {}
        if self.texts:
            columns = [self.unpack(chunk)[1] for chunks in entities for chunk in chunks]
            texts = {
                number: np.array([text for column in columns for text in column[place]], object)
                for place, number in enumerate(self.texts)
            }
        return rows.reshape(-1, self.words.width), np.array(starts), texts


def _bits(value: float) -> int:
    """Give a float's bits, in its one form."""
    if value != value:  # noqa: PLR0124 # NaN
        value = float("nan")
    return struct.unpack("<q", struct.pack("<d", value + 0.0))[0]
