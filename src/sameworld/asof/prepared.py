"""Prepared rows in any order -> sorted rows: which version lives from when until when, and each entity's rows in order.

Engines and workers give batches of the columns of `rows.prepared_sql` with the number of each row's entity; what they mean is decided here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sameworld.asof.aggregations import NEVER
from sameworld.asof.columns import NO_WORDS, InputColumn, Texts, input_words
from sameworld.asof.order import NO_KEY, sorted_order
from sameworld.asof.parts import Words
from sameworld.asof.read import SortedRows
from sameworld.asof.threads import SERIAL, Threads
from sameworld.asof.versions import superseded_at

World = Literal["as_of", "event_time"]
"""as_of: rows count when they were readable. event_time: every fact's last version counts as readable at its event time, as in a notebook's join."""

_ROWS_A_BUCKET = 64
_MIX = np.uint64(0x9E3779B97F4A7C15)
_SIGN = np.uint64(1 << 63)


class Reading:
    """Batches of prepared rows as words: entity, event, available, gone, perhaps tie, version, fact_low, fact_high, no_fact and row, and words_0.., valid_0.. of the inputs.

    Args:
        families: of the inputs.
        world: which rows count as readable when.
        within: the source's `corrections_within`, in microseconds.
    """

    def __init__(self, families: Sequence[str | None], world: World, within: int | None = None) -> None:
        self.families = list(families)
        self.world: World = world
        self.within = NEVER if within is None else within
        self.texts = {number: Texts() for number, family in enumerate(families) if family == "text"}

    def words(self, batch: pa.RecordBatch) -> Words:
        """Give a batch's columns as words.

        Args:
            batch: columns entity (-1: of no entity, but perhaps a version of a fact), event_time, available_at, input_0.. and, where the source has an id,
                fact_low (and fact_high), version and deleted, or version and superseded_at where that is known already; tie where it may matter; and
                row, the row's number, where it is wanted.
        """
        event, gone = _filled(batch.column("event_time"))
        available, unreadable = _filled(batch.column("available_at"))
        if self.world == "event_time":
            available = np.where(unreadable, event, available)
            unreadable = gone
        result: Words = {
            "entity": batch.column("entity").to_numpy(),
            "event": event,
            "available": np.where(unreadable, NEVER, available) if unreadable.any() else available,
        }
        names = set(batch.schema.names)
        if "tie" in names:
            result["tie"] = np.bitwise_xor(batch.column("tie").to_numpy(), _SIGN).view(np.int64)
        if "fact_low" in names:
            gone = gone | batch.column("deleted").to_numpy(zero_copy_only=False)
            result["fact_low"], result["no_fact"] = _filled(batch.column("fact_low"))
            if "fact_high" in names:
                result["fact_high"] = _filled(batch.column("fact_high"))[0]
        if "superseded_at" in names:
            result["superseded"] = batch.column("superseded_at").to_numpy()
        if "version" in names:
            result["version"] = batch.column("version").to_numpy()
        if "row" in names:
            result["row"] = batch.column("row").to_numpy()
        result["gone"] = gone
        for number, family in enumerate(self.families):
            words, valid = input_words(family, batch.column(f"input_{number}"), self.texts.get(number))
            result[f"valid_{number}"] = valid
            if family is not None:
                result[f"words_{number}"] = words
        return result


def gathered(parts: Iterable[Words], rows: int = 0) -> Words:
    """Give the parts' columns one after the other.

    Args:
        parts: at least one, be it empty.
        rows: how many rows there are at most, if that is known: nothing is copied twice then.
    """
    kept: Words = {}
    size = 0
    for part in parts:
        more = next(iter(part.values())).shape[0]
        for name, column in part.items():
            if name not in kept:
                kept[name] = np.empty(max(rows, more), column.dtype)
            elif kept[name].shape[0] < size + more:
                grown = np.empty(max(2 * kept[name].shape[0], size + more), column.dtype)
                grown[:size] = kept[name][:size]
                kept[name] = grown
            kept[name][size : size + more] = column
        size += more
    return {name: column[:size] for name, column in kept.items()}


@dataclass(frozen=True)
class Sorted:
    """What `sort` gives: the rows, and the number of each (`row`), where the columns had one; else its place among them."""

    rows: SortedRows
    row: NDArray[np.int64]
    tie: NDArray[np.int64]


def lived(columns: Words, reading: Reading, run: Threads = SERIAL) -> Words:
    """Give rows with `available` as it counts and `superseded`, of all versions of their facts; those that never live are of no entity (-1)."""
    lives = lifetimes(columns, reading, run)
    available, superseded = lives.counted, lives.superseded
    gone = columns["gone"] | (available == NEVER)
    if superseded.shape[0]:
        gone |= available >= superseded
        if reading.world == "event_time":
            gone |= superseded != NEVER
    result = {name: column for name, column in columns.items() if name not in _OF_VERSIONS}
    if gone.any():
        result["entity"] = np.where(gone, -1, columns["entity"])
    result["available"] = columns["event"] if reading.world == "event_time" else available
    if superseded.shape[0]:
        result["superseded"] = superseded
    return result


_OF_VERSIONS = {"gone", "fact_low", "fact_high", "no_fact"}


def sort(columns: Words, reading: Reading, entities: int, run: Threads = SERIAL) -> Sorted:
    """Give rows sorted by (entity, event time, available time, version, tie).

    Args:
        columns: from `lived`; emptied, so that memory is given back on the way. Rows of no entity are left out.
        reading: what made them.
        entities: how many there are.
        run: threads.
    """
    event, available = columns.pop("event"), columns.pop("available")
    tie, version = columns.pop("tie", NO_KEY), columns.pop("version", NO_KEY)
    entity = np.ascontiguousarray(columns.pop("entity"), np.int64)
    order, starts = sorted_order(entity, entities, (event, available, version, tie), run)
    del entity, version
    inputs: list[InputColumn] = []
    for number, family in enumerate(reading.families):
        words = run.take(columns.pop(f"words_{number}"), order) if family is not None else NO_WORDS
        valid = run.take(columns.pop(f"valid_{number}"), order)
        inputs.append(
            reading.texts[number].column(words, valid)
            if family == "text"
            else InputColumn(family, words, valid)
        )
    ends = run.take(columns.pop("superseded"), order) if "superseded" in columns else NO_KEY
    if ends.shape[0] and (ends == NEVER).all():
        ends = NO_KEY
    row = run.take(columns.pop("row"), order) if "row" in columns else order
    rows = SortedRows(starts, run.take(event, order), run.take(available, order), ends, inputs)
    return Sorted(rows, row, run.take(tie, order) if tie.shape[0] else tie)


def sorted_rows(
    batches: Iterable[pa.RecordBatch],
    families: Sequence[str | None],
    entities: int,
    *,
    world: World,
    within: int | None = None,
    run: Threads,
    rows: int = 0,
) -> Sorted:
    """Give batches' rows sorted, all together; `rows` is how many there are at most, if that is known."""
    reading = Reading(families, world, within)
    return sort(lived(gathered(_words(reading, batches), rows), reading, run), reading, entities, run)


def mixed(columns: Words) -> NDArray[np.uint64]:
    """Give 32 bits that are the same for rows of one fact; those of no fact are spread."""
    low = np.where(columns["no_fact"], np.arange(columns["fact_low"].shape[0]), columns["fact_low"])
    return (low.view(np.uint64) * _MIX) >> np.uint64(32)


def _words(reading: Reading, batches: Iterable[pa.RecordBatch]) -> Iterator[Words]:
    for batch in batches:
        yield reading.words(batch)


def _filled(column: pa.Array) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Give int64 values, 0 where null, and which are null."""
    if not column.null_count:
        return column.to_numpy(), np.zeros(len(column), np.bool_)
    return pc.fill_null(column, 0).to_numpy(), column.is_null().to_numpy(zero_copy_only=False)


@dataclass(frozen=True)
class Lifetimes:
    """When row versions live.

    Args:
        counted: shape (rows,), microseconds; from when on each is readable, NEVER for one that does not count.
        superseded: shape (rows,), until when; empty for a source without an id.
        first: shape (rows,), when the first version of its fact became readable; empty for a source without an id.
    """

    counted: NDArray[np.int64]
    superseded: NDArray[np.int64]
    first: NDArray[np.int64]


def lifetimes(columns: Words, reading: Reading, run: Threads) -> Lifetimes:
    """Give when each row version lives; rows without a fact are facts of their own."""
    available = columns["available"]
    if "fact_low" not in columns:
        return Lifetimes(available, NO_KEY, NO_KEY)
    low, high = columns["fact_low"], columns.get("fact_high", NO_KEY)
    rows = low.shape[0]
    buckets = max(rows // _ROWS_A_BUCKET, 1)
    bucket = (mixed(columns) % np.uint64(buckets)).astype(np.int64)
    bucket[columns["no_fact"]] = -1
    # A fact is in one bucket only, so rows of one fact lie together.
    keys = (low, high, columns["version"], available, columns["tie"])
    order, _ = sorted_order(bucket, buckets, keys, run)
    del bucket
    same = np.zeros(order.shape[0], np.bool_)
    same[1:] = low[order[1:]] == low[order[:-1]]
    if high.shape[0]:
        same[1:] &= high[order[1:]] == high[order[:-1]]
    counted, superseded, first = superseded_at(same, available[order], reading.within)
    result = Lifetimes(available.copy(), np.full(rows, NEVER, np.int64), available.copy())
    result.counted[order], result.superseded[order], result.first[order] = counted, superseded, first
    return result


def with_empty(table: pa.Table) -> Iterator[pa.RecordBatch]:
    """Give a table's batches, after one without rows, so that there is one."""
    yield pa.RecordBatch.from_pylist([], schema=table.schema)
    yield from table.to_batches()
