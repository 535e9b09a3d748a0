"""Prepared rows of one source -> the index: which versions live, and those rows into every grouping's chunks. A commit group at a time, because what a
commit costs is the chunks it touches and not the rows it brings.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import lmdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sameworld.asof.aggregations import NEVER
from sameworld.asof.columns import InputColumn, input_column
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


@dataclass(frozen=True)
class Coming:
    """Prepared rows of one source in the order in which they are taken.

    Args:
        table: see `rows`; of the columns `key_..` those of `names`.
        available_at: shape (rows,), microseconds.
        names: of the keys.
    """

    table: pa.Table
    available_at: NDArray[np.int64]
    names: Sequence[str]

    @classmethod
    def of(
        cls, deliveries: Sequence[tuple[pa.Table, int]], names: Sequence[str], within: int | None
    ) -> Coming:
        """Bring deliveries together; rows that are never readable stay out.

        Args:
            deliveries: prepared rows and their stamp; 0 in a replay, where each row says itself when it became readable.
            within: for how long corrections count, in microseconds. In a replay the first version of a fact comes first then.
        """
        tables: list[pa.Table] = []
        times: list[NDArray[np.int64]] = []
        for table, stamp in deliveries:
            kept, available = table, np.full(table.num_rows, stamp, np.int64)
            if not stamp:
                available = table["available_at"].fill_null(NEVER).to_numpy()
                order = np.argsort(available, kind="stable") if within is not None else np.arange(len(available))  # fmt: skip
                order = order[available[order] != NEVER]
                kept, available = table.take(order), available[order]
            tables.append(kept)
            times.append(available)
        together = tables[0] if len(tables) == 1 else pa.concat_tables(tables)
        return cls(together.combine_chunks(), np.concatenate(times), names)

    @functools.cached_property
    def events(self) -> NDArray[np.int64]:
        """Event times, shape (rows,), microseconds; 0 where there is none: see `dated`."""
        return self.table["event_time"].fill_null(0).to_numpy()

    @functools.cached_property
    def dated(self) -> NDArray[np.bool_]:
        return self.table["event_time"].is_valid().to_numpy()

    @functools.cached_property
    def deleted(self) -> NDArray[np.bool_]:
        return self.table["deleted"].to_numpy()

    @functools.cached_property
    def keys(self) -> dict[str, tuple[NDArray[np.int64], list[Any]]]:
        """Key -> the place of each row's value among the different ones, -1 where null; and those."""
        found: dict[str, tuple[NDArray[np.int64], list[Any]]] = {}
        for number, name in enumerate(self.names):
            coded = _array(self.table, f"key_{number}").dictionary_encode()
            places = coded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
            found[name] = places, coded.dictionary.to_pylist()
        return found

    @functools.cached_property
    def heads(self) -> list[tuple[int, int, int, bool, int | None, tuple[Any, ...]]]:
        """Version, available time, tie, deleted, event time and keys of every row."""
        names = [
            [values[place] if place >= 0 else None for place in places.tolist()]
            for places, values in self.keys.values()
        ]
        return list(
            zip(
                self.table["version"].to_pylist(),
                self.available_at.tolist(),
                self.table["tie"].to_pylist(),
                self.deleted.tolist(),
                self.table["event_time"].to_pylist(),
                zip(*names, strict=True) if names else [()] * self.table.num_rows,
                strict=True,
            )
        )

    def input(self, number: int, family: str | None) -> InputColumn:
        return input_column(family, self.table[f"input_{number}"])

    def entities(self, keys: Sequence[str], chosen: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64], list[list[Any]]]:  # fmt: skip
        """Give which of the chosen rows have all keys, the number of each one's entity, and the entities' keys."""
        code = np.zeros(len(self.available_at), np.int64)
        for name in keys:
            places, values = self.keys[name]
            chosen = chosen & (places >= 0)
            code = code * len(values) + places
        rows = np.flatnonzero(chosen)
        different, numbers = np.unique(code[rows], return_inverse=True)
        columns: list[list[Any]] = []
        for name in reversed(keys):
            values = self.keys[name][1]
            different, places = np.divmod(different, max(len(values), 1))
            columns.append([values[place] for place in places.tolist()])
        return rows, numbers, [list(key) for key in zip(*reversed(columns), strict=True)]


def _only(column: InputColumn, rows: NDArray[np.int64]) -> InputColumn:
    words = column.words if column.family is None else column.words[rows]
    return replace(column, words=words, valid=column.valid[rows])


def _array(table: pa.Table, name: str) -> pa.Array:
    column = table[name]
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


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
    living = coming.dated & ~coming.deleted
    gone = _superseded(index, txn, facts, coming, living, within)
    inputs: dict[int, InputColumn] = {}
    chunks = index.chunks(txn)
    for place in places:
        for head in gone:
            # By name: whoever wrote this head may have kept other groupings, too.
            _remove(chunks, place, [head.keys.get(k) for k in place.grouping.keys], head)
        for number, family in zip(place.inputs, place.layout.words.families, strict=True):
            if number not in inputs:
                inputs[number] = coming.input(number, family)
        _insert_all(chunks, index.chunk_rows, place, coming, living, [inputs[n] for n in place.inputs], floor)


def _superseded(
    index: Index,
    txn: lmdb.Transaction,
    facts: bytes,
    coming: Coming,
    living: NDArray[np.bool_],
    within: int | None,
) -> list[Head]:
    """Note the greatest version of each fact; give those in the index that live no more, and take from `living` the rows that do not."""
    column = coming.table["fact"]
    if column.null_count == len(column):
        return []
    at = [None if fact is None else fact_key(facts, fact) for fact in column.to_pylist()]
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
        (key, Head(*coming.heads[row][:5], dict(zip(coming.names, coming.heads[row][5], strict=True)), firsts[key]))
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
        chunks.put(found[0], left)


def _insert_all(
    chunks: Chunks,
    most: int,
    where: Place,
    coming: Coming,
    living: NDArray[np.bool_],
    inputs: Sequence[InputColumn],
    floor: int,
) -> None:
    """Insert the rows that live, entity by entity in the order of their keys in the index."""
    chosen, numbers, keys = coming.entities(where.grouping.keys, living)
    if not chosen.size:
        return
    prefixes = [entity_prefix(where.prefix, key) for key in keys]
    by_prefix = sorted(range(len(prefixes)), key=prefixes.__getitem__)
    rank = np.empty(len(prefixes), np.int64)
    rank[by_prefix] = np.arange(len(prefixes))
    order = [
        coming.events[chosen],
        coming.available_at[chosen],
        coming.table["version"].to_numpy()[chosen],
        coming.table["tie"].to_numpy()[chosen],
    ]
    rows, texts = where.layout.rows(order, [_only(column, chosen) for column in inputs])
    ranks = rank[numbers]
    sorting = ordered(rows, ranks)
    rows = rows[sorting]
    texts = [[column[row] for row in sorting.tolist()] for column in texts]
    starts = np.searchsorted(ranks[sorting], np.arange(len(prefixes) + 1)).tolist()
    content, width = rows.tobytes(), where.layout.row_bytes
    events, edges = rows[:, EVENT].tolist(), chunk_edges(rows[:, EVENT])
    puts: list[tuple[bytes, bytes]] = []
    for number, entity in enumerate(by_prefix):
        start, stop = starts[number], starts[number + 1]
        prefix = prefixes[entity]
        found = chunks.at(prefix, prefix + edges[8 * start : 8 * start + 8])
        following = found[2] if found is not None else chunks.first(prefix)
        if following is None or events[stop - 1] < start_of(following):
            mine = content[start * width : stop * width]
            more = where.layout.appended(found[1] if found is not None else NO_ROWS, mine, most)
            if more is not None:
                puts.append((found[0] if found is not None else chunk_key(prefix), more))
                continue
        _insert(
            chunks, most, where, prefix, rows[start:stop], [column[start:stop] for column in texts], floor
        )
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
            if place == 0:
                chunks.put(chunk_key(prefix) if found is None else found[0], chunk)
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
