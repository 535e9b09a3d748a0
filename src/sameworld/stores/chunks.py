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
NO_ROWS = bytes(_HEAD)
"""A chunk without any, where none of its inputs is text."""
_SIGN = 1 << 63
_TIMES, _WORD = struct.Struct("<qq"), struct.Struct("<q")  # event and available of a row of words; any word
_ORDER = struct.Struct("<qq8xqq")  # event, available, version and tie of a row of words
_FIRST_WORDS = struct.Struct("<5q")

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
        self.row_bytes = self.words.width * 8
        self._row = struct.Struct(f"<{self.words.width}q").pack

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

    def row(self, order: tuple[int, int, int, int], words: Sequence[int | None]) -> bytes:
        """Give the bytes of a single row, as `rows` does for many.

        Args:
            order: its event time, available time, version and tie.
            words: of every input, anything for one of text or one that only counts rows; None where it does not take part.
        """
        row = [0] * self.words.width
        row[EVENT], row[AVAILABLE], row[VERSION], tie = order
        row[SUPERSEDED], row[TIE] = NEVER, tie_word(tie)
        for place, (at, mask), value in zip(words, self.words.valid, self.words.values, strict=True):
            if place is not None:
                row[at] |= mask
                if value:
                    row[value] = place
        return self._row(*row)

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
        return rows, (msgspec.msgpack.decode(chunk[_HEAD + count * self.row_bytes :]) if self.texts else [])

    def ends_with(self, chunk: bytes | memoryview, wanted: Mapping[int, int], t: int) -> bool:
        """Whether a chunk's last row has all that is wanted: a single row of each input that is readable at `t`. Most have, and the others can wait."""
        if max(wanted.values()) > 1:
            return False
        count = int.from_bytes(chunk[:_HEAD], "little")
        last = _HEAD + (count - 1) * self.row_bytes
        if not count or not all(time < t for time in _TIMES.unpack_from(chunk, last)):
            return False
        for number in wanted:
            word, mask = self.words.valid[number]
            if not _WORD.unpack_from(chunk, last + 8 * word)[0] & mask:
                return False
        return True

    def appended(self, chunk: bytes, rows: bytes, most: int) -> bytes | None:
        """Give a chunk's bytes with more rows at its end; None where they do not belong there, or do not fit into `most`.

        Args:
            rows: of words, in order.
        """
        if self.texts:
            return None
        count = (len(chunk) + len(rows) - _HEAD) // self.row_bytes
        if count > most:
            return None
        end = len(chunk) - self.row_bytes
        if end > 0 and _ORDER.unpack_from(chunk, end) > _ORDER.unpack_from(rows):
            return None
        return count.to_bytes(_HEAD, "little") + chunk[_HEAD:] + rows

    def merged(self, chunk: bytes, rows: RowWords, texts: Texts) -> tuple[RowWords, Texts]:
        """Give a chunk's rows and some more, in order."""
        old, old_texts = self.unpack(chunk)
        together = np.concatenate([old, rows])
        order = ordered(together)
        return together[order], [
            np.array([*column, *more], object)[order].tolist()
            for column, more in zip(old_texts, texts, strict=True)
        ]

    def without(self, chunk: bytes, order: tuple[int, int, int, int]) -> bytes | None:
        """Give a chunk's bytes without one row; None where it is not there.

        Args:
            order: its event time, available time, version and tie.
        """
        event, available, version, tie = order
        wanted = _FIRST_WORDS.pack(event, available, NEVER, version, tie_word(tie))
        end = _HEAD + int.from_bytes(chunk[:_HEAD], "little") * self.row_bytes
        at = chunk.find(wanted, _HEAD, end)
        while at >= 0 and (at - _HEAD) % self.row_bytes:
            at = chunk.find(wanted, at + 1, end)
        if at < 0:
            return None
        count = (end - _HEAD) // self.row_bytes
        left = (count - 1).to_bytes(_HEAD, "little") + chunk[_HEAD:at] + chunk[at + self.row_bytes : end]
        if not self.texts:
            return left
        place = (at - _HEAD) // self.row_bytes
        columns = [[*column[:place], *column[place + 1 :]] for column in self.unpack(chunk)[1]]
        return left + msgspec.msgpack.encode(columns)

    def together(
        self, entities: Sequence[Sequence[bytes | memoryview]], *, texts: bool = True
    ) -> tuple[RowWords, NDArray[np.int64], dict[int, NDArray[Any]]]:
        """Give entities' chunks as one table of rows, where each entity's rows begin and end, and (unless told not to) the texts by input."""
        parts: list[bytes | memoryview] = []
        starts, count = [0], 0
        for chunks in entities:
            for chunk in chunks:
                rows = int.from_bytes(chunk[:_HEAD], "little")
                end = _HEAD + rows * self.row_bytes
                if end > len(chunk) or (end < len(chunk) and not self.texts):
                    raise ValueError(f"a chunk of {len(chunk)} bytes says that it has {rows} rows")
                parts.append(chunk[_HEAD:end])
                count += rows
            starts.append(count)
        rows = np.frombuffer(b"".join(parts), np.int64)  # a copy: where chunks lie is not aligned
        texts_of: dict[int, NDArray[Any]] = {}
        if self.texts and texts:
            columns = [self.unpack(chunk)[1] for chunks in entities for chunk in chunks]
            texts_of = {
                number: np.array([text for column in columns for text in column[place]], object)
                for place, number in enumerate(self.texts)
            }
        return rows.reshape(-1, self.words.width), np.array(starts), texts_of


def ordered(rows: RowWords, *first: NDArray[np.int64]) -> NDArray[np.int64]:
    """Give the places of rows in the kernel's order; by other keys first, the most important one last."""
    return np.lexsort((rows[:, TIE], rows[:, VERSION], rows[:, AVAILABLE], rows[:, EVENT], *first))
