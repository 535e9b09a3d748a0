"""Blobs: what goes from worker to worker. Rows of one partition as Arrow's own bytes, with the partition's number.

So an engine moves few and large pieces whose content it never looks at, and no value passes through types of its own. What is wrong with data or
definitions travels as a blob, too.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sameworld import errors
from sameworld.asof.order import by_group, group_starts
from sameworld.engines.kept_rows import code
from sameworld.errors import DataError, SameworldError

BLOBS = pa.schema([("part", pa.int32()), ("kind", pa.int32()), ("data", pa.binary())])
"""The partition, what the data are, and the data."""
ERROR, MOMENTS, ROWS = -1, 0, 1
FIRST_ANSWER = 1
"""The kind of the first question's answers; those of the next one are of the next kind."""

Blobs = Iterator[pa.RecordBatch]
Stage = Callable[[Blobs], Blobs]


def blob(part: int, kind: int, data: bytes) -> pa.RecordBatch:
    """Give one blob."""
    columns = [pa.array([part], pa.int32()), pa.array([kind], pa.int32()), pa.array([data], pa.binary())]
    return pa.record_batch(columns, schema=BLOBS)


def cut(batch: pa.RecordBatch, part: NDArray[np.int64], kind: int, first: int, parts: int) -> pa.RecordBatch:
    """Give rows as blobs, one a partition.

    Args:
        batch: the rows.
        part: shape (rows,), each one's partition from 0; -1 to leave it out.
        kind: of the blobs.
        first: the number of partition 0.
        parts: how many there are.
    """
    bounds = group_starts(part, parts)
    moved = batch.take(pa.array(by_group(part, bounds)))
    present = np.flatnonzero(np.diff(bounds))
    # One after the other in one buffer, so that nothing is copied twice.
    sink, ends = pa.BufferOutputStream(), [0]
    for p in present:
        with pa.ipc.new_stream(sink, moved.schema) as stream:
            stream.write_batch(moved.slice(bounds[p], bounds[p + 1] - bounds[p]))
        ends.append(sink.tell())
    data = [None, pa.py_buffer(np.array(ends, np.int32)), sink.getvalue()]
    blobs = pa.Array.from_buffers(pa.binary(), present.shape[0], data)
    kinds = np.full(present.shape[0], kind, np.int32)
    return pa.record_batch([pa.array(present + first, pa.int32()), pa.array(kinds), blobs], schema=BLOBS)


def unpacked(data: pa.Buffer) -> pa.RecordBatch:
    """Give a blob's rows."""
    return pa.ipc.open_stream(data).read_next_batch()


def pieces(blobs: Iterable[pa.RecordBatch]) -> Iterator[tuple[int, int, pa.Buffer]]:
    """Give (part, kind, data) of every blob."""
    for batch in blobs:
        part, kind = batch.column("part").to_pylist(), batch.column("kind").to_pylist()
        for i, data in enumerate(batch.column("data")):
            yield part[i], kind[i], data.as_buffer()


def in_parts(blobs: pa.Table) -> Blobs:
    """Give blobs as a stage takes them, sorted by (part, kind). None of their bytes are moved."""
    part, kind = (blobs[name].to_numpy() for name in ("part", "kind"))
    batches = blobs.to_batches()
    starts = np.cumsum([0, *(batch.num_rows for batch in batches)])
    order = np.lexsort((kind, part))
    of_batch = np.searchsorted(starts, order, side="right") - 1
    for place, number in zip(order.tolist(), of_batch.tolist(), strict=True):
        yield batches[number].slice(place - int(starts[number]), 1)


def dealt(blobs: Iterable[pa.RecordBatch], hands: int) -> list[pa.Table]:
    """Give blobs as so many tables, those of part p in number p % hands, each in few pieces of memory."""
    given: list[list[pa.RecordBatch]] = [[] for _ in range(hands)]
    for batch in blobs:
        for place, part in enumerate(batch.column("part").to_pylist()):
            given[part % hands].append(batch.slice(place, 1))
    return [pa.Table.from_batches(some, BLOBS).combine_chunks() for some in given]


def by_part(blobs: Blobs) -> Iterator[tuple[int, Iterator[tuple[int, pa.Buffer]]]]:
    for part, some in itertools.groupby(pieces(blobs), lambda piece: piece[0]):
        yield part, ((kind, data) for _, kind, data in some)


@dataclass(frozen=True)
class Guarded:
    """A stage whose errors are blobs, so that they reach whoever asked, as they were, and no engine tries again what will fail again.

    Args:
        stage: what a worker does.
        code: the driver's `kept_rows.code`: what bits depend on.
    """

    stage: Stage
    code: str

    def __call__(self, blobs: Blobs) -> Blobs:
        try:
            if code() != self.code:
                raise DataError(
                    "A worker has other versions than the driver, so its values could be others.",
                    expected="the same sameworld, duckdb, numpy and pyarrow on every machine",
                    found=f"duckdb {duckdb.__version__}, numpy {np.__version__}, pyarrow {pa.__version__} on the worker",
                    do="install what the driver has on the workers.",
                )
            yield from self.stage(blobs)
        except SameworldError as error:
            yield blob(0, ERROR, json.dumps(error.as_json()).encode())


def raised(data: pa.Buffer) -> SameworldError:
    """Give the error of a blob."""
    facts = json.loads(data.to_pybytes())
    kind = getattr(errors, facts.pop("error"))
    return kind(facts.pop("what"), **facts)
