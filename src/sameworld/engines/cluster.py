"""Many machines: an engine that people have (Spark) moves rows and moments to each other; `worker` says what happens where they meet.

Nothing here knows which engine it is, and no engine knows what it moves.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np
import pyarrow as pa

from sameworld.asof.plan import Grouping
from sameworld.asof.prepared import World
from sameworld.asof.schema import Schema
from sameworld.engines.duckdb import DuckDBEngine, is_csv
from sameworld.engines.interface import Asked, Rows
from sameworld.engines.kept_rows import code
from sameworld.engines.worker import (
    BLOBS,
    ERROR,
    FIRST_ANSWER,
    Answer,
    Blobs,
    Guarded,
    Live,
    PrepareBatches,
    PrepareSlices,
    Question,
    Slice,
    Stage,
    moment_blobs,
    no_answers,
    pieces,
    prepared_blobs,
    raised,
    unpacked,
)

ROWS_A_TASK = 4_000_000
"""How many rows of a file are read by one task, at most."""
ROWS_A_PARTITION = 4_000_000
"""How many rows of a source a partition has, about, where it is not said how many partitions there are."""
MEMORY_BYTES = 1 << 30


class Flow(Protocol):
    """What an engine does for us: it runs stages in its workers and brings blobs of one partition together. What it makes in between is its own affair.

    A stage may be called again for the same blobs, when a worker was lost.
    """

    @property
    def parallelism(self) -> int:
        """How many tasks run at a time."""
        ...

    def owns(self, data: Any) -> bool:
        """Whether data are a table of the engine's own kind."""
        ...

    def describe(self, data: Any) -> dict[str, str]:
        """Give the columns of a table of its own and the DuckDB types that carry their values."""
        ...

    def table(self, data: Any) -> pa.Table:
        """Give a table of its own as Arrow."""
        ...

    def given(self, blobs: pa.Table) -> Any:
        """Have the driver's blobs."""
        ...

    def tasks(self, count: int, call: Callable[[int], Blobs]) -> Any:
        """Have the blobs of call(0) to call(count - 1)."""
        ...

    def batches(self, data: Any, columns: Sequence[str], stage: Stage) -> Any:
        """Have what a stage makes of batches of some columns of a table of its own."""
        ...

    def union(self, several: Sequence[Any]) -> Any:
        """Have the blobs of all."""
        ...

    def shuffled(self, blobs: Any, parts: int, stage: Stage) -> Any:
        """Have what a stage makes of blobs, all those of one partition (0 to parts - 1) in one call, sorted by (part, kind)."""
        ...

    def collected(self, blobs: Any) -> Iterable[pa.RecordBatch]:
        """Give blobs to the driver, in any order."""
        ...

    def close(self) -> None:
        """Give back what it has of its own."""
        ...


def _silent(_: str) -> None:
    """Say nothing."""


class ClusterEngine:
    """An engine that sends rows and moments to workers.

    Parquet files are read by the workers, in slices, and tables of the engine's own kind by the engine. Arrow tables, CSV files and DuckDB queries are
    read by the driver.

    Args:
        flow: the engine that moves them.
        folder: what relative paths in definitions start from; the same on every machine.
        partitions: how many parts a source's rows are put into; about one for every 4 million rows by default.
        memory_bytes: how much of a partition's rows one task holds in memory; the rest waits on its machine's disk.
        say: told what is being done.
    """

    def __init__(
        self,
        flow: Flow,
        folder: Path | None = None,
        *,
        partitions: int | None = None,
        memory_bytes: int = MEMORY_BYTES,
        say: Callable[[str], None] = _silent,
    ) -> None:
        self._flow, self._partitions, self._memory, self._say = flow, partitions, memory_bytes, say
        # Workers need not be where the driver is.
        self._driver = DuckDBEngine((folder or Path()).resolve())

    def close(self) -> None:
        """Stop what was started for this engine."""
        self._driver.close()
        self._flow.close()

    def describe(self, data: Any, what: str) -> dict[str, str]:
        return self._flow.describe(data) if self._flow.owns(data) else self._driver.describe(data, what)

    def table(self, data: Any, what: str, *, timezone: str | None = None) -> pa.Table:
        return self._driver.table(self._arrow(data), what, timezone=timezone)

    def batches(self, data: Any, what: str, *, rows: int, timezone: str | None = None) -> Iterator[pa.Table]:
        yield from self._driver.batches(self._arrow(data), what, rows=rows, timezone=timezone)

    def files(self, data: Any) -> list[Path] | None:
        return None if self._flow.owns(data) else self._driver.files(data)

    def _arrow(self, data: Any) -> Any:
        return self._flow.table(data) if self._flow.owns(data) else data

    def aggregates(
        self,
        groupings: Sequence[Grouping],
        schemas: Mapping[str, Schema],
        asked: Asked,
        *,
        rows: Mapping[str, Rows],
        world: World,
    ) -> dict[str, pa.Array]:
        questions = self._questions(groupings, schemas, world, rows)
        if not questions:
            return {}
        number = np.arange(asked.at.shape[0])
        found = {question.number: [no_answers(question)] for question in questions}
        moments = [
            blobs
            for question in questions
            for blobs in moment_blobs(
                self._driver.connection, question, asked.keys, number, asked.at, asked.as_of
            )
        ]
        prepared = self._prepared(questions, groupings, rows, given=moments)
        answers = self._flow.shuffled(
            prepared, _parts(questions), self._stage(Answer(questions, self._memory))
        )
        for kind, data in _checked(self._flow.collected(answers)):
            found[kind - FIRST_ANSWER].append(unpacked(data))
        return {
            name: column
            for question in questions
            for name, column in _in_order(found.pop(question.number), number.shape[0]).items()
        }

    def _questions(
        self,
        groupings: Sequence[Grouping],
        schemas: Mapping[str, Schema],
        world: World,
        rows: Mapping[str, Rows],
    ) -> list[Question]:
        known = [
            sum(some.last - some.first for some in self._slices(_rows_of(grouping, rows).data))
            for grouping in groupings
        ]
        parts = self._partitions or max(self._flow.parallelism, -(-max(known, default=0) // ROWS_A_PARTITION))
        return [
            Question(number, parts, _bare(grouping), dict(schemas[grouping.source.content]), world)
            for number, grouping in enumerate(groupings)
        ]

    def _stage(self, stage: Stage) -> Stage:
        return Guarded(stage, code())

    def _prepared(
        self,
        questions: Sequence[Question],
        groupings: Sequence[Grouping],
        rows: Mapping[str, Rows],
        *,
        given: Sequence[pa.RecordBatch],
        more: Sequence[Any] = (),
    ) -> Any:
        """Have, for every question, moments and the rows that they may read, in partitions of entities.

        Args:
            questions: what is asked.
            groupings: theirs, with their data.
            rows: source content -> where its rows are.
            given: the moments that the driver has.
            more: those that the engine has.
        """
        plain = [(q, g) for q, g in zip(questions, groupings, strict=True) if g.source.id is None]
        facts = [(q, g) for q, g in zip(questions, groupings, strict=True) if g.source.id is not None]
        found = [*more, *self._read(plain, rows, given)]
        if facts:
            versions = self._flow.union(self._read(facts, rows, ()))
            live = self._stage(Live(questions))
            found.append(self._flow.shuffled(versions, _parts(questions), live))
        return self._flow.union(found)

    def _read(
        self,
        asked: Sequence[tuple[Question, Grouping]],
        rows: Mapping[str, Rows],
        given: Sequence[pa.RecordBatch],
    ) -> list[Any]:
        """Have all rows of some questions' sources, prepared, and what is given beside them."""
        blobs, found = list(given), list[Any]()
        tasks: list[tuple[Question, Slice, int | None]] = []
        con = self._driver.connection
        for question, grouping in asked:
            where, what = _rows_of(grouping, rows), f"source {grouping.source.name!r}"
            slices = self._slices(where.data)
            if self._flow.owns(where.data):
                stage = self._stage(PrepareBatches(question, where.cutover))
                found.append(self._flow.batches(where.data, list(question.schema), stage))
            elif slices:
                tasks += [(question, some, where.cutover) for some in slices]
            else:
                if not isinstance(where.data, pa.Table):
                    self._say(f"{what} is no Parquet, so the driver reads it")
                with self._driver.readable(where.data, what) as relation:
                    blobs += prepared_blobs(con, question, relation, what, cutover=where.cutover)
            if where.log is not None:
                with self._driver.readable(where.log, f"the event log of {what}") as logged:
                    blobs += prepared_blobs(con, question, logged, what, stamped=True)
        if tasks:
            read = functools.partial(_task, PrepareSlices(tasks), code())
            found.append(self._flow.tasks(len(tasks), read))
        if blobs or not found:
            found.append(self._flow.given(pa.Table.from_batches(blobs, BLOBS)))
        return found

    def _slices(self, data: Any) -> list[Slice]:
        """Give the tasks of reading Parquet files; none for other data."""
        if self._flow.owns(data):
            return []
        files = self._driver.files(data)
        if not files or any(is_csv(str(path)) for path in files):
            return []
        counts = self._driver.counts(files)
        size = max(min(ROWS_A_TASK, -(-sum(counts) // (2 * self._flow.parallelism))), 100_000)
        slices: list[Slice] = []
        offset = 0
        for path, rows in zip(files, counts, strict=True):
            slices += [Slice(path, first, min(first + size, rows), offset) for first in range(0, rows, size)]
            offset += rows
        return slices


def _task(prepare: Callable[[int], Blobs], known: str, number: int) -> Blobs:
    """One task of reading: as a stage of nothing, so that its errors travel as all others do."""
    yield from Guarded(lambda _: prepare(number), known)(iter(()))


def _rows_of(grouping: Grouping, rows: Mapping[str, Rows]) -> Rows:
    return rows.get(grouping.source.content, Rows(grouping.source.data))


def _bare(grouping: Grouping) -> Grouping:
    """Leave out where data lie."""
    source = msgspec.structs.replace(grouping.source, data=None)
    return Grouping(source, grouping.keys, grouping.inputs, grouping.reads)


def _parts(questions: Sequence[Question]) -> int:
    return sum(question.parts for question in questions)


def _checked(blobs: Iterable[pa.RecordBatch]) -> Iterator[tuple[int, pa.Buffer]]:
    """Give (kind, data) of every blob.

    Raises:
        SameworldError: what went wrong in a worker; of several errors always the same one.
    """
    wrong: list[pa.Buffer] = []
    for _, kind, data in pieces(blobs):
        if kind == ERROR:
            wrong.append(data)
        else:
            yield kind, data
    if wrong:
        raise raised(min(wrong, key=lambda data: data.to_pybytes()))


def _in_order(answers: Sequence[pa.RecordBatch], moments: int) -> dict[str, pa.Array]:
    """Give answers' columns in the order of the moments' numbers, from 0; `answers` have __moment and the columns, in any order."""
    table = pa.Table.from_batches(answers).combine_chunks()
    number = table["__moment"].to_numpy()
    place = np.full(moments, -1, np.int64)
    place[number] = np.arange(number.shape[0])
    if number.shape[0] != moments or (place < 0).any():
        raise AssertionError(f"{number.shape[0]} answers came to {moments} moments")
    columns = table.drop_columns(["__moment"]).take(pa.array(place))
    return {name: _one(columns[name]) for name in columns.column_names}


def _one(column: pa.ChunkedArray) -> pa.Array:
    whole = column.combine_chunks()
    return whole.chunk(0) if isinstance(whole, pa.ChunkedArray) else whole
