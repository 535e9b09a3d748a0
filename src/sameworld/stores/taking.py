"""Prepared rows of one source -> the index: which versions live, and those rows into every grouping's chunks. A commit group at a time, because what a
commit costs is the chunks it touches and not the rows it brings.
"""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import lmdb
import numpy as np
from numpy.typing import NDArray

from sameworld.asof.aggregations import NEVER
from sameworld.asof.columns import InputColumn, input_column, word_of
from sameworld.asof.entity import EVENT
from sameworld.asof.versions import closes_at, order_of
from sameworld.stores.chunks import NO_ROWS, RowWords, Texts, ordered
from sameworld.stores.lmdb import (
    Chunks,
    Head,
    Index,
    Place,
    chunk_edges,
    chunk_key,
    entity_prefix,
    fact_key,
    start_of,
)
from sameworld.stores.prepared import Prepared, together

_FEW_ROWS = 48
"""Up to so many, rows are brought into order one by one: a call of NumPy costs more than the row."""


@dataclass(frozen=True)
class Coming:
    """Prepared rows of one source in the order in which they are taken.

    Args:
        rows: of the columns `key_..` those of `names`.
        available: microseconds, of each row.
        names: of the keys.
    """

    rows: Prepared
    available: list[int]
    names: Sequence[str]

    @classmethod
    def of(
        cls, deliveries: Sequence[tuple[Prepared, int]], names: Sequence[str], within: int | None
    ) -> Coming:
        """Bring deliveries together; rows that are never readable stay out.

        Args:
            deliveries: prepared rows and their stamp; 0 in a replay, where each row says itself when it became readable.
            within: for how long corrections count, in microseconds. In a replay the first version of a fact comes first then.
        """
        parts: list[Prepared] = []
        times: list[int] = []
        for rows, stamp in deliveries:
            kept, available = rows, [stamp] * len(rows)
            if not stamp:
                said = rows.values("available_at")
                order = [row for row, time in enumerate(said) if time is not None and time != NEVER]
                if within is not None:
                    order.sort(key=said.__getitem__)
                available = [said[row] for row in order]
                if available != said:
                    kept = rows.take(order)
            parts.append(kept)
            times += available
        return cls(together(parts), times, names)

    @property
    def few(self) -> bool:
        return len(self.available) <= _FEW_ROWS

    @functools.cached_property
    def events(self) -> list[int | None]:
        """Event times, microseconds."""
        return self.rows.values("event_time")

    @functools.cached_property
    def order(self) -> tuple[NDArray[Any], ...]:
        """Event (0 where there is none), available, version and tie of every row."""
        event = self.rows.array("event_time").fill_null(0)
        event, version, tie = (
            column.to_numpy() for column in (event, self.rows.array("version"), self.rows.array("tie"))
        )
        return event, np.array(self.available, np.int64), version, tie

    @functools.cached_property
    def codes(self) -> dict[str, tuple[NDArray[np.int64], list[Any]]]:
        """Key -> the place of each row's value among the different ones, -1 where null; and those."""
        found: dict[str, tuple[NDArray[np.int64], list[Any]]] = {}
        for number, name in enumerate(self.names):
            coded = self.rows.array(f"key_{number}").dictionary_encode()
            places = coded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
            found[name] = places, coded.dictionary.to_pylist()
        return found

    @functools.cached_property
    def keys(self) -> dict[str, list[Any]]:
        """Key -> each row's value."""
        if self.few:
            return {name: self.rows.values(f"key_{number}") for number, name in enumerate(self.names)}
        return {
            name: [values[place] if place >= 0 else None for place in places.tolist()]
            for name, (places, values) in self.codes.items()
        }

    @functools.cached_property
    def deleted(self) -> list[bool]:
        return self.rows.values("deleted")

    @functools.cached_property
    def heads(self) -> list[tuple[int, int, int, bool, int | None]]:
        """Version, available time, tie, deleted and event time of every row."""
        version, tie = (self.rows.values(name) for name in ("version", "tie"))
        return list(zip(version, self.available, tie, self.deleted, self.events, strict=True))

    @functools.cached_property
    def _inputs(self) -> dict[int, InputColumn]:
        return {}

    def inputs(self, where: Place) -> list[InputColumn]:
        """Give the inputs of a grouping."""
        for number, family in zip(where.inputs, where.layout.words.families, strict=True):
            if number not in self._inputs:
                self._inputs[number] = input_column(family, self.rows.array(f"input_{number}"))
        return [self._inputs[number] for number in where.inputs]

    def entities(self, keys: Sequence[str], chosen: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64], list[list[Any]]]:  # fmt: skip
        """Give which of the chosen rows have all keys, the number of each one's entity, and the entities' keys."""
        code = np.zeros(len(self.available), np.int64)
        for name in keys:
            places, values = self.codes[name]
            chosen = chosen & (places >= 0)
            code = code * len(values) + places
        rows = np.flatnonzero(chosen)
        different, numbers = np.unique(code[rows], return_inverse=True)
        columns: list[list[Any]] = []
        for name in reversed(keys):
            values = self.codes[name][1]
            different, places = np.divmod(different, max(len(values), 1))
            columns.append([values[place] for place in places.tolist()])
        return rows, numbers, [list(key) for key in zip(*reversed(columns), strict=True)]


def _only(column: InputColumn, rows: NDArray[np.int64]) -> InputColumn:
    words = column.words if column.family is None else column.words[rows]
    return replace(column, words=words, valid=column.valid[rows])


def take(
    index: Index,
    txn: lmdb.Transaction,
    facts: bytes,
    coming: Coming,
    places: Sequence[Place],
    floor: int,
    within: int | None = None,
) -> None:
    """Take rows into every grouping of their source.

    Where corrections count within a time only, the first version of a fact must come first.

    Args:
        facts: the first bytes of the keys of what is known of the source's facts.
        places: of every grouping over the source that is to have the rows.
        floor: no moment before this will be asked about any more.
        within: for how long corrections of a fact count; None is for ever.
    """
    living = [
        event is not None and not deleted
        for event, deleted in zip(coming.events, coming.deleted, strict=True)
    ]
    gone = _superseded(index, txn, facts, coming, living, within)
    runs_of = few_runs if coming.few else many_runs
    chunks = index.chunks(txn)
    for place in places:
        for head in gone:
            # By name: whoever wrote this head may have kept other groupings, too.
            _remove(chunks, place, [head.keys.get(k) for k in place.grouping.keys], head)
        runs = runs_of(place, coming, living)
        if runs is not None:
            _insert_all(chunks, index.sizes.rows, place, runs, floor)
        if chunks.stale:
            index.renew_tallies(txn, place.layout, chunks.stale)
            chunks.stale.clear()


def _superseded(
    index: Index,
    txn: lmdb.Transaction,
    facts: bytes,
    coming: Coming,
    living: list[bool],
    within: int | None,
) -> list[Head]:
    """Note the greatest version of each fact; give those in the index that live no more, and take from `living` the rows that do not."""
    at = [None if fact is None else fact_key(facts, fact) for fact in coming.rows.values("fact")]
    if not any(at):
        return []
    known = index.heads(txn, {key for key in at if key is not None})
    mine: dict[bytes, int] = {}
    firsts: dict[bytes, int | None] = {}
    gone: list[Head] = []
    closing: list[tuple[int, bytes]] = []
    for row, (key, coming_head) in enumerate(zip(at, coming.heads, strict=True)):
        if key is None:
            continue
        before = mine.get(key)
        head = None
        if before is None:
            head = known.get(key)
            if key in known and head is None:  # closed
                living[row] = False
                continue
            firsts[key] = coming_head[1] if head is None and within is not None else head and head.first_available  # fmt: skip
            if head is None and within is not None:
                closing.append((closes_at(coming_head[1], within), key))
        if before is not None or head is not None:
            last = coming.heads[before][:3] if before is not None else (head.version, head.available_at, head.tie)  # fmt: skip # pyright: ignore[reportOptionalMemberAccess]
            first = firsts[key]
            closed = within is not None and first is not None and coming_head[1] >= closes_at(first, within)
            if closed or order_of(*coming_head[:3]) <= order_of(*last):
                living[row] = False
                continue
            if before is not None:
                living[before] = False
            elif head is not None and not head.deleted and head.event_time is not None:
                gone.append(head)
        mine[key] = row
    made = [
        (key, Head(*coming.heads[row], {name: values[row] for name, values in coming.keys.items()}, firsts[key]))
        for key, row in mine.items()
    ]  # fmt: skip
    index.note_heads(txn, made, closing)
    return gone


def _remove(chunks: Chunks, where: Place, key: list[Any], head: Head) -> None:
    if None in key:
        return
    assert head.event_time is not None
    prefix = entity_prefix(where.prefix, key)
    found = chunks.at(prefix, chunk_key(prefix, head.event_time))
    if found is None:
        return
    left = where.layout.without(found[1], (head.event_time, head.available_at, head.version, head.tie))
    if left is not None:
        chunks.put(found[0], left, last=found[2] is None)


@dataclass(frozen=True)
class Runs:
    """The rows that live, entity by entity in the order of their keys in the index, and each one's in the kernel's order.

    Args:
        prefixes: of the entities.
        starts: where each one's rows begin, and where the last one's end.
        events: the rows' event times.
        content: the rows, as they lie in a chunk.
        texts: theirs.
    """

    prefixes: list[bytes]
    starts: list[int]
    events: list[int]
    content: bytes
    texts: Texts


def many_runs(where: Place, coming: Coming, living: Sequence[bool]) -> Runs | None:
    chosen, numbers, keys = coming.entities(where.grouping.keys, np.array(living, np.bool_))
    if not chosen.size:
        return None
    prefixes = [entity_prefix(where.prefix, key) for key in keys]
    by_prefix = sorted(range(len(prefixes)), key=prefixes.__getitem__)
    rank = np.empty(len(prefixes), np.int64)
    rank[by_prefix] = np.arange(len(prefixes))
    inputs = [_only(column, chosen) for column in coming.inputs(where)]
    rows, texts = where.layout.rows([column[chosen] for column in coming.order], inputs)
    ranks = rank[numbers]
    sorting = ordered(rows, ranks)
    starts = np.searchsorted(ranks[sorting], np.arange(len(prefixes) + 1)).tolist()
    texts = [[column[row] for row in sorting.tolist()] for column in texts]
    rows = rows[sorting]
    prefixes = [prefixes[entity] for entity in by_prefix]
    return Runs(prefixes, starts, rows[:, EVENT].tolist(), rows.tobytes(), texts)


def few_runs(where: Place, coming: Coming, living: Sequence[bool]) -> Runs | None:
    """The same as `many_runs`, row by row."""
    keys = list(zip(*(coming.keys[name] for name in where.grouping.keys), strict=True))
    chosen = [row for row, (there, key) in enumerate(zip(living, keys, strict=True)) if there and None not in key]  # fmt: skip
    if not chosen:
        return None
    families = where.layout.words.families
    inputs = [coming.rows.values(f"input_{number}") for number in where.inputs]
    words = list(zip(*([word_of(family, value) for value in column] for family, column in zip(families, inputs, strict=True)), strict=True))  # fmt: skip
    found: list[tuple[bytes, tuple[int, int, int, int], int]] = []
    for row in chosen:
        version, available, tie, _, event = coming.heads[row]
        assert event is not None
        found.append((entity_prefix(where.prefix, keys[row]), (event, available, version, tie), row))
    found.sort()
    rows_of = Counter(prefix for prefix, *_ in found)
    return Runs(
        list(rows_of),
        [0, *itertools.accumulate(rows_of.values())],
        [order[0] for _, order, _ in found],
        b"".join(where.layout.row(order, words[row]) for _, order, row in found),
        [[inputs[number][row] for *_, row in found] for number in where.layout.texts],
    )


def _insert_all(chunks: Chunks, most: int, where: Place, runs: Runs, floor: int) -> None:
    """Insert rows, entity by entity."""
    layout, width = where.layout, where.layout.row_bytes
    edges = chunk_edges(np.array(runs.events))
    puts: list[tuple[bytes, bytes]] = []
    for prefix, (start, stop) in zip(runs.prefixes, itertools.pairwise(runs.starts), strict=True):
        mine = runs.content[start * width : stop * width]
        found = chunks.at(prefix, prefix + edges[8 * start : 8 * start + 8])
        following = found[2] if found is not None else chunks.first(prefix)
        if following is None or runs.events[stop - 1] < start_of(following):
            more = layout.appended(found[1] if found is not None else NO_ROWS, mine, most)
            if more is not None:
                puts.append((found[0] if found is not None else chunk_key(prefix), more))
                if following is not None:
                    chunks.stale.add(puts[-1][0])
                continue
        rows = np.frombuffer(mine, np.int64).reshape(-1, layout.words.width)
        _insert(chunks, most, where, prefix, rows, [column[start:stop] for column in runs.texts], floor)
    chunks.put_all(puts)


def _insert(
    chunks: Chunks,
    most: int,
    where: Place,
    prefix: bytes,
    rows: RowWords,
    texts: Texts,
    floor: int,
) -> None:
    """Insert rows of one entity, in order, wherever they belong."""
    layout, made = where.layout, False
    while len(rows):
        found = chunks.at(prefix, chunk_key(prefix, int(rows[0, EVENT])))
        following = found[2] if found is not None else chunks.first(prefix)
        stop = len(rows)
        if following is not None:
            stop = int(np.searchsorted(rows[:, EVENT], start_of(following)))
        mine, my_texts = rows[:stop], [column[:stop] for column in texts]
        rows, texts = rows[stop:], [column[stop:] for column in texts]
        at_end = following is None
        if found is not None:
            old = layout.unpack(found[1])[0]
            at_end = following is None and (not len(old) or old[-1, EVENT] <= mine[0, EVENT])
            mine, my_texts = layout.merged(found[1], mine, my_texts)
        cuts = _cuts(mine[:, EVENT], most, full=at_end)
        for place, (low, high) in enumerate(zip([0, *cuts], [*cuts, len(mine)], strict=True)):
            chunk = layout.pack(mine[low:high], [column[low:high] for column in my_texts])
            last = following is None and not cuts
            if place == 0:
                chunks.put(chunk_key(prefix) if found is None else found[0], chunk, last=last)
            else:
                chunks.put(chunk_key(prefix, int(mine[low, EVENT])), chunk)
        made = made or bool(cuts)
    if made and where.longest_past is not None:
        chunks.expire(prefix, floor - where.longest_past)


def _cuts(events: NDArray[np.int64], most: int, *, full: bool) -> list[int]:
    """Give where rows are cut into chunks of at most `most`, but for equal event times, which stay together.

    Args:
        full: chunks are filled one by one, because what comes next comes after them; otherwise they are alike and have room.
    """
    count = len(events)
    if count <= most:
        return []
    step = most if full else -(-count // -(-count // most))
    cuts: list[int] = []
    low = 0
    while low + step < count:
        cut = int(np.searchsorted(events, events[low + step]))
        if cut <= low:
            cut = int(np.searchsorted(events, events[low], side="right"))
        if cut == count:
            break
        cuts.append(cut)
        low = cut
    return cuts
