"""The tallies of an entity's chunks, some hundred to a record: a window over a million rows is read from some records and the chunks at its edges.

Every chunk of an entity has its tally (see `asof.tally`), but for the last one, to which rows are still added. A record says of chunks that follow each
other from which event time on each has rows, and begins with the tally of all of them.
"""

from __future__ import annotations

import struct
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from sameworld.asof.aggregations import BEGINNING, DISTINCT, FIRST, LAST, LATEST, MAX, MIN, NEVER
from sameworld.asof.entity import AVAILABLE, EVENT, Words
from sameworld.asof.plan import Read
from sameworld.asof.read import partials_of
from sameworld.asof.schedule import edge_time
from sameworld.asof.tally import AT, AVAILABLE_AT, Tallies, TallyWords
from sameworld.stores.chunks import Layout

_WORD = 8
_HEAD = struct.Struct("<qq")


class Missing(Exception):
    """Something that was not fetched is needed: a chunk that begins at `start`, or more of its record, whose chunks are from `begin` to `end`."""

    def __init__(self, start: int, begin: int = BEGINNING, end: int = NEVER) -> None:
        super().__init__(start)
        self.start, self.begin, self.end = start, begin, end


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
    """Read a record's tallies.

    Raises:
        Missing: only its head is there.
    """
    head, count = _HEAD.unpack_from(record.content)
    if len(record.content) == head:
        raise Missing(record.start)
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


class Asked:
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

    def at(self, t: int) -> Edges:
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
        return any(a < end and b > begin for a, b in self.raw)


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
    begins = [*(record.start for record in records), last[0]]
    rows: dict[int, Any] = {}
    parts: list[Tallies] = []
    totals: dict[int, Record] = {}

    def missed(at: int) -> Missing:
        place = max(bisect_right(begins, at) - 1, 0)
        return Missing(at, begins[place], begins[min(place + 1, len(records))])

    def chunk(at: int) -> Any:
        try:
            return fetch(at)
        except KeyError:
            raise missed(at) from None

    def tallies_of(record: Record) -> Tallies:
        try:
            return unpack(words, record)
        except Missing as error:
            raise missed(error.start) from None

    for record, begin, end in zip(records, begins, begins[1:], strict=False):
        if not edges.reaches(begin, end):
            continue
        inside = edges.inside(begin, end)
        if not inside and not edges.wants_rows(begin, end):
            all_of_it = total(words, record)
            if all_of_it.table[0, AVAILABLE_AT] < edges.t:
                parts.append(all_of_it)
                totals[begin] = record
                continue
        tallies = tallies_of(record)
        starts = tallies.starts
        ends = np.append(starts[1:], end)
        whole = tallies.table[:, AVAILABLE_AT] < edges.t
        for cut in inside:
            place = int(np.searchsorted(starts, cut, side="right")) - 1
            whole[place] &= bool(starts[place] == cut)
        for a, b in edges.raw:
            whole &= (ends <= a) | (starts >= b)
        reached = (ends > edges.low) & (starts < edges.cuts[-1])
        rows.update((start, chunk(start)) for start in starts[reached & ~whole].tolist())
        if (reached & whole).any():
            parts.append(tallies.only(reached & whole))
    rows[last[0]] = last[1]
    tallies = words.together(parts) if parts else None
    for wish in edges.ordered:
        while tallies is not None and (place := _lacking(wish, edges.t, layout, tallies, rows)) is not None:
            start = int(tallies.starts[place])
            pieces = [tallies.only(slice(None, place)), tallies.only(slice(place + 1, None))]
            if start in totals:
                pieces.insert(1, tallies_of(totals.pop(start)))
            else:
                rows[start] = chunk(start)
            pieces = [piece for piece in pieces if len(piece.starts)]
            tallies = words.together(pieces) if pieces else None
    return Found([rows[start] for start in sorted(rows)], tallies)


def _lacking(
    wish: tuple[int, int, int, int, bool], t: int, layout: Layout, tallies: Tallies, rows: dict[int, Any]
) -> int | None:
    """Give the tally whose rows would have to be looked at for the first or last rows of a window; None where these are there."""
    item, wanted, a, b, first = wish
    at = layout.words.tally.items(tallies.ranges)[item, AT]
    some = np.flatnonzero((tallies.starts >= a) & (tallies.starts < b) & (tallies.table[:, at] > 0))
    if not some.size:
        return None
    place = int(some[0] if first else some[-1])
    border = int(tallies.starts[place])
    word, mask = layout.words.valid[item]
    for start, chunk in rows.items():
        if (start < border) == first:
            found = layout.unpack(chunk)[0]
            usable = (found[:, EVENT] >= a) & (found[:, EVENT] < b) & (found[:, AVAILABLE] < t)
            wanted -= int(np.count_nonzero(found[usable, word] & mask))
            if wanted <= 0:
                return None
    return place
