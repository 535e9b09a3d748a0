"""The tallies of an entity's chunks, some hundred to a record: a window over a million rows is read from some records and the chunks at its edges.

Every chunk of an entity has its tally (see `asof.tally`), but for the last one, to which rows are still added. A record says of chunks that follow each
other from which event time on each has rows, and begins with the tally of all of them.
"""

from __future__ import annotations

import contextlib
import functools
import struct
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sameworld.asof.aggregations import BEGINNING, DISTINCT, FIRST, LAST, LATEST, MAX, MIN
from sameworld.asof.entity import AVAILABLE, EVENT, Words
from sameworld.asof.plan import Read
from sameworld.asof.read import partials_of
from sameworld.asof.schedule import edge_time
from sameworld.asof.tally import AT, AVAILABLE_AT, Tallies, TallyWords
from sameworld.stores.chunks import Layout

_WORD = 8
_HEAD = struct.Struct("<qq")


class Missing(Exception):
    """Chunks or records that were not fetched are needed: those that begin at `starts`."""

    def __init__(self, starts: Sequence[int]) -> None:
        super().__init__(starts)
        self.starts = starts


class Record(NamedTuple):
    """Where the first chunk of a record begins, and its bytes, of which only the head may be there."""

    start: int
    content: bytes | memoryview


def pack(words: TallyWords, tallies: Tallies) -> bytes:
    """Give a record's bytes: how many its head has, how many tallies it has, their ranges, the tally of all, where each begins, and each."""
    total = words.total(tallies).tobytes()
    head = 2 * _WORD + len(tallies.ranges) + len(total)
    starts = tallies.starts.astype(np.int64, copy=False).tobytes()
    return b"".join(
        (_HEAD.pack(head, len(tallies.starts)), tallies.ranges, total, starts, tallies.table.tobytes())
    )


def head_bytes(content: bytes | memoryview) -> int:
    """Give how many bytes of a record are enough for `total`."""
    return _HEAD.unpack_from(content)[0]


def unpack(words: TallyWords, record: Record) -> Tallies:
    """Read a record's tallies."""
    head, count = _HEAD.unpack_from(record.content)
    ranges = bytes(record.content[2 * _WORD : 2 * _WORD * (1 + words.count)])
    width = words.width(ranges)
    starts = np.frombuffer(record.content, np.int64, count, head)
    table = np.frombuffer(record.content, np.int64, count * width, head + count * _WORD)
    return Tallies(starts, ranges, table.reshape(count, width))


def total(words: TallyWords, record: Record) -> Tallies:
    """Read the tally of all that a record has, as one."""
    at = 2 * _WORD * (1 + words.count)
    ranges = bytes(record.content[2 * _WORD : at])
    table = np.frombuffer(record.content, np.int64, words.width(ranges), at)
    return Tallies(np.array([record.start], np.int64), ranges, table[None])


def made(layout: Layout, chunks: Sequence[tuple[int, bytes]]) -> Tallies:
    """Give the tallies of chunks and the event times from which on each has rows."""
    rows, runs, _ = layout.together([[chunk] for _, chunk in chunks], texts=False)
    return layout.words.tally.of(rows, runs, np.array([start for start, _ in chunks], np.int64))


def renewed(
    layout: Layout, record: Record | None, chunks: Sequence[tuple[int, bytes | None]], most: int
) -> list[tuple[int, bytes]]:
    """Give the records that stand for one and some chunks that have changed, and from when on each has chunks.

    Args:
        record: None where there was none.
        chunks: where each begins, in order; None of one that is gone.
        most: tallies in a record.
    """
    words = layout.words.tally
    parts: list[Tallies] = []
    last = BEGINNING
    if record is not None:
        before = unpack(words, record)
        last = int(before.starts[-1])
        kept = ~np.isin(before.starts, np.array([start for start, _ in chunks], np.int64))
        if kept.any():
            parts.append(before.only(kept))
    fresh = [(start, chunk) for start, chunk in chunks if chunk is not None]
    if fresh:
        parts.append(made(layout, fresh))
    if not parts:
        return []
    tallies = words.together(parts)
    tallies = tallies.only(np.argsort(tallies.starts))
    count = len(tallies.starts)
    # What comes next comes after them; otherwise they are alike and have room.
    step = most if record is None or (fresh and fresh[-1][0] > last) else -(-count // -(-count // most))
    return [
        (int(tallies.starts[begin]), pack(words, tallies.only(slice(begin, begin + step))))
        for begin in range(0, count, step)
    ]


@dataclass
class Found:
    """What reads of an entity need: rows, in chunks in the order of time, and the tallies of others."""

    chunks: list[Any]
    tallies: Tallies | None = None


class Windows:
    """What windows want of an entity whose chunks have tallies.

    Args:
        reads: a grouping's.
        words: where its inputs are.
    """

    def __init__(self, reads: Sequence[Read], words: Words) -> None:
        edges: set[int] = set()
        self._raw: list[tuple[int, int]] = []
        self._ordered: list[tuple[int, int, int, int, bool]] = []
        for read in reads:
            for start, end in zip(*(side.tolist() for side in read.edges), strict=True):
                edges |= {start, end}
                for partial, item, rows in partials_of(read):
                    if partial in (FIRST, LAST, LATEST):
                        self._ordered.append((item, rows, start, end, partial == FIRST))
                    elif partial == DISTINCT or (partial in (MIN, MAX) and words.families[item] == "text"):
                        self._raw.append((start, end))
        self._edges = edges - {BEGINNING}
        self._beginning = BEGINNING in edges
        self.at = functools.lru_cache(4)(self._at)  # a batch asks for many entities at one moment

    def _at(self, t: int) -> Edges:
        """Give the windows at a moment."""
        cuts = sorted({edge_time(t, edge) for edge in self._edges})
        return Edges(
            t,
            cuts,
            BEGINNING if self._beginning else cuts[0],
            [(edge_time(t, start), edge_time(t, end)) for start, end in self._raw],
            [
                (item, rows, edge_time(t, a), edge_time(t, b), first)
                for item, rows, a, b, first in self._ordered
            ],
        )


@dataclass
class Edges:
    """Where windows begin and end.

    Args:
        t: the moment.
        cuts: event times in order: each is where a window begins or ends.
        low: where the first begins.
        raw: windows that want the rows themselves.
        ordered: input, how many rows are wanted of the window from `a` to `b`, and whether the first ones and not the last.
    """

    t: int
    cuts: list[int]
    low: int
    raw: list[tuple[int, int]]
    ordered: list[tuple[int, int, int, int, bool]]

    @property
    def looked_at(self) -> list[tuple[int, int]]:
        """Give from when to when rows themselves are needed; where that is no time, those around it."""
        return [*((cut, cut) for cut in self.cuts), *self.raw]

    def inside(self, begin: int, end: int) -> list[int]:
        """Give the cuts between two event times."""
        return self.cuts[bisect_right(self.cuts, begin) : bisect_left(self.cuts, end)]

    def reaches(self, begin: int, end: int) -> bool:
        """Whether any window has part of what is between two event times."""
        return end > self.low and begin < self.cuts[-1]

    def wants_rows(self, begin: int, end: int) -> bool:
        """Whether any window wants rows of what is between two event times."""
        return any(a < end and b > begin for a, b in self.raw)

    def parted(self, tallies: Tallies, end: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Give which of some tallies stand for their chunks, and which chunks' rows have to be looked at; neither where no window has any.

        Args:
            end: the event time from which on other chunks have rows.
        """
        starts, ends = tallies.starts, np.append(tallies.starts[1:], end)
        whole = tallies.table[:, AVAILABLE_AT] < self.t
        for cut in self.inside(int(starts[0]), end):
            place = int(np.searchsorted(starts, cut, side="right")) - 1
            whole[place] &= bool(starts[place] == cut)
        for a, b in self.raw:
            whole &= (ends <= a) | (starts >= b)
        reached = (ends > self.low) & (starts < self.cuts[-1])
        return reached & whole, reached & ~whole


def choose(
    edges: Edges,
    layout: Layout,
    records: Sequence[Record],
    last: tuple[int, Any],
    fetch: Callable[[int], Any],
) -> Found:
    """Give what windows need of an entity.

    Args:
        edges: of the windows.
        records: all that the windows reach, in order.
        last: where the entity's last chunk begins, and that chunk.
        fetch: gives a chunk by where it begins.

    Raises:
        Missing: what is needed is not there.
    """
    words = layout.words.tally
    parts: list[Tallies] = []
    totals: dict[int, Record] = {}
    opened: list[tuple[Record, int]] = []
    ends = [*(record.start for record in records[1:]), last[0]]
    for record, end in zip(records, ends, strict=False):
        if not edges.reaches(record.start, end):
            continue
        if not edges.inside(record.start, end) and not edges.wants_rows(record.start, end):
            all_of_it = total(words, record)
            if all_of_it.table[0, AVAILABLE_AT] < edges.t:
                parts.append(all_of_it)
                totals[record.start] = record
                continue
        opened.append((record, end))
    single: list[int] = []
    for tallies, (_, end) in zip(_unpacked(words, [record for record, _ in opened]), opened, strict=True):
        whole, others = edges.parted(tallies, end)
        single += tallies.starts[others].tolist()
        parts.append(tallies.only(whole))
    rows = _fetched(fetch, single)
    rows[last[0]] = last[1]
    tallies = _in_order(words, parts)
    for wish in edges.ordered:
        while tallies is not None and (places := _lacking(wish, edges.t, layout, tallies, rows)):
            starts = tallies.starts[places].tolist()
            shut = [totals.pop(start) for start in starts if start in totals]
            if not shut:
                rows |= _fetched(fetch, starts)
            gone = np.isin(tallies.starts, [record.start for record in shut] or starts)
            tallies = _in_order(words, [tallies.only(~gone), *_unpacked(words, shut)])
    return Found([rows[start] for start in sorted(rows)], tallies)


def _unpacked(words: TallyWords, records: Sequence[Record]) -> list[Tallies]:
    """Read records' tallies, or say of which only the head is there."""
    shut = [record.start for record in records if len(record.content) == head_bytes(record.content)]
    if shut:
        raise Missing(shut)
    return [unpack(words, record) for record in records]


def _fetched(fetch: Callable[[int], Any], starts: Sequence[int]) -> dict[int, Any]:
    """Fetch chunks, or say which are not there."""
    found: dict[int, Any] = {}
    for start in starts:
        with contextlib.suppress(KeyError):
            found[start] = fetch(start)
    if len(found) < len(starts):
        raise Missing([start for start in starts if start not in found])
    return found


def _in_order(words: TallyWords, parts: Sequence[Tallies]) -> Tallies | None:
    """Bring tallies together; None where there are none."""
    some = [part for part in parts if len(part.starts)]
    if not some:
        return None
    tallies = words.together(some)
    return tallies.only(np.argsort(tallies.starts))


def _lacking(
    wish: tuple[int, int, int, int, bool], t: int, layout: Layout, tallies: Tallies, rows: Mapping[int, Any]
) -> list[int]:
    """Give the tallies that have, where the rows that are there have not, the first or last rows of a window."""
    item, wanted, a, b, first = wish
    counts = tallies.table[:, layout.words.tally.items(tallies.ranges)[item, AT]]
    some = np.flatnonzero((tallies.starts >= a) & (tallies.starts < b) & (counts > 0))
    word, mask = layout.words.valid[item]
    chunks = iter(sorted(rows, reverse=not first))
    chunk = next(chunks, None)
    found: list[int] = []
    for place in (some if first else some[::-1]).tolist():
        border = int(tallies.starts[place])
        while chunk is not None and (chunk < border) == first:
            mine, *_ = layout.together([[rows[chunk]]], texts=False)
            usable = (mine[:, EVENT] >= a) & (mine[:, EVENT] < b) & (mine[:, AVAILABLE] < t)
            wanted -= int(np.count_nonzero(mine[usable, word] & mask))
            chunk = next(chunks, None)
            if wanted <= 0:
                return found
        found.append(place)
        wanted -= int(counts[place])
        if wanted <= 0:
            return found
    return found
