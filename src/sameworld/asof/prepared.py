"""Prepared rows in any order -> sorted rows: which version lives from when until when, and each entity's rows in order.

Engines and workers give batches of the columns of `rows.prepared_sql` with the number of each row's entity; what they mean is decided here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sameworld.asof.aggregations import NEVER
from sameworld.asof.columns import InputColumn, input_column
from sameworld.asof.order import NO_KEY, sorted_order
from sameworld.asof.read import SortedRows
from sameworld.asof.threads import Threads
from sameworld.asof.versions import superseded_at

World = Literal["as_of", "event_time"]
"""as_of: rows count when they were readable. event_time: every fact's last version counts as readable at its event time, as in a notebook's join."""

_ROWS_A_BUCKET = 64
_MIX = np.uint64(0x9E3779B97F4A7C15)
_SIGN = np.uint64(1 << 63)


def sorted_rows(
    batches: Iterable[pa.RecordBatch],
    families: Sequence[str | None],
    entities: int,
    *,
    world: World,
    run: Threads,
) -> tuple[SortedRows, NDArray[np.int64]]:
    """Give the rows that live at some time, sorted by (entity, event time, available time, version, tie).

    Args:
        batches: columns entity (-1: of no entity, but perhaps a version of a fact), event_time, available_at, input_0.. and, where the source has an id,
            fact_low (and fact_high), version and deleted; and tie where it may matter.
        families: of the inputs.
        entities: how many there are.
        world: which rows count as readable when.
        run: threads.

    Returns:
        The rows, and which row of the batches, counted through them, each is.
    """
    columns = _together(batches, len(families))
    event, no_event = _times(columns.pop("event_time"))
    available, unreadable = _times(columns.pop("available_at"))
    if world == "event_time":
        available = np.where(unreadable, event, available)
        unreadable = no_event
    available = np.where(unreadable, NEVER, available) if unreadable.any() else available
    entity = columns.pop("entity").to_numpy()
    tie = np.bitwise_xor(columns.pop("tie").to_numpy(), _SIGN).view(np.int64) if "tie" in columns else NO_KEY
    version = columns.pop("version").to_numpy() if "version" in columns else NO_KEY
    superseded = NO_KEY
    gone = no_event | unreadable
    if "fact_low" in columns:
        fact, no_fact = _times(columns.pop("fact_low"))
        more = _times(columns.pop("fact_high"))[0] if "fact_high" in columns else NO_KEY
        superseded = _superseded(fact, more, no_fact, version, available, tie, run)
        gone |= (available >= superseded) | columns.pop("deleted").to_numpy(zero_copy_only=False)
        if world == "event_time":
            gone |= superseded != NEVER
    if world == "event_time":
        available = event
    entity = np.where(gone, -1, entity) if gone.any() else entity
    order, starts = sorted_order(
        np.ascontiguousarray(entity, np.int64), entities, (event, available, version, tie), run
    )
    inputs: list[InputColumn] = []
    for number, family in enumerate(families):
        column = input_column(family, columns.pop(f"input_{number}"))
        words = column.words[order] if column.words.shape[0] else column.words
        inputs.append(InputColumn(family, words, column.valid[order], column.texts))
    ends = superseded[order] if superseded.shape[0] else superseded
    if ends.shape[0] and (ends == NEVER).all():
        ends = NO_KEY
    return SortedRows(starts, event[order], available[order], ends, inputs), order


def _together(batches: Iterable[pa.RecordBatch], inputs: int) -> dict[str, pa.Array]:
    """Give the batches' columns, each as one array; a batch is let go of as soon as its columns are taken."""
    parts: dict[str, list[pa.Array]] = {}
    schema: pa.Schema | None = None
    for batch in batches:
        schema = batch.schema
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            parts.setdefault(name, []).append(column)
    assert schema is not None, "an engine gives at least one batch, be it empty"
    result: dict[str, pa.Array] = {}
    for name in list(parts):
        arrays = parts.pop(name)
        result[name] = pa.concat_arrays(arrays) if len(arrays) > 1 else arrays[0]
    return result


def _times(column: pa.Array) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Give int64 values, 0 where null, and which are null."""
    none = (
        column.is_null().to_numpy(zero_copy_only=False)
        if column.null_count
        else np.zeros(len(column), np.bool_)
    )
    return (column.fill_null(0) if column.null_count else column).to_numpy(), none


def _superseded(
    fact: NDArray[np.int64],
    more: NDArray[np.int64],
    no_fact: NDArray[np.bool_],
    version: NDArray[np.int64],
    available: NDArray[np.int64],
    tie: NDArray[np.int64],
    run: Threads,
) -> NDArray[np.int64]:
    """Give when each row version stops being the truth; NEVER for rows without a fact."""
    rows = fact.shape[0]
    buckets = max(rows // _ROWS_A_BUCKET, 1)
    mixed = (fact.view(np.uint64) * _MIX) >> np.uint64(32)
    bucket = (mixed % np.uint64(buckets)).astype(np.int64)
    bucket[no_fact] = -1
    order, _ = sorted_order(bucket, buckets, (fact, more, version, available, tie), run)
    same = np.zeros(order.shape[0], np.bool_)
    same[1:] = fact[order[1:]] == fact[order[:-1]]
    if more.shape[0]:
        same[1:] &= more[order[1:]] == more[order[:-1]]
    # Buckets are apart even if the last fact of one and the first of the next were alike: a fact is in one bucket only.
    result = np.full(rows, NEVER, np.int64)
    result[order] = superseded_at(same, available[order])
    return result
