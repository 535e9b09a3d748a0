"""What the workers of a cluster do: prepare rows, find out which live, answer moments. The cluster's engine brings to each what it needs, and nothing else.

Everything goes from worker to worker as blobs: rows of one partition as Arrow's own bytes, with the partition's number. So an engine moves few and large
pieces whose content it never looks at, and no value passes through types of its own.

Each partition has all rows of its entities (or, before that, all versions of its facts) and all moments that ask about them. A function here sees the
blobs of one or several partitions, sorted by (part, kind). What is wrong with data or definitions travels on as a blob of its own.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sameworld import errors
from sameworld.asof.order import by_group, group_starts
from sameworld.asof.parts import Scratch
from sameworld.asof.plan import Grouping
from sameworld.asof.prepared import Reading, World, lived
from sameworld.asof.rows import literal, prepared_sql, quoted
from sameworld.asof.schema import Schema, kind_of
from sameworld.asof.threads import SERIAL
from sameworld.engines.answer import (
    BATCH_ROWS,
    answer,
    asked_table,
    fact_columns,
    has_keys,
    is_ordered,
    key_names,
)
from sameworld.engines.duckdb import digest_of, exactly, on_clocks, sums_sql
from sameworld.engines.interface import MomentTable
from sameworld.engines.kept_rows import code
from sameworld.errors import DataError, SameworldError

BLOBS = pa.schema([("part", pa.int32()), ("kind", pa.int32()), ("data", pa.binary())])
"""The partition, what the data are, and the data."""
ERROR, MOMENTS, ROWS = -1, 0, 1
FIRST_ANSWER = 1
"""The kind of the first question's answers; those of the next one are of the next kind."""

Blobs = Iterator[pa.RecordBatch]
Stage = Callable[[Blobs], Blobs]

_MOST_BYTES = 64 << 20
_BLOB_BYTES = 10_000
_ROWS_A_BLOB = 500


@dataclass(frozen=True)
class Question:
    """One grouping, as a worker is told of it.

    Args:
        number: of the question; its partitions are number * parts and so on.
        parts: how many partitions its rows are put into.
        grouping: what is read; its source has no data.
        schema: the source's pinned schema.
        world: which rows count as readable when.
        as_of: microseconds; rows readable before it count. None: each moment says it.
    """

    number: int
    parts: int
    grouping: Grouping
    schema: dict[str, str]
    world: World
    as_of: int | None = None


@dataclass(frozen=True)
class Slice:
    """Some rows of a Parquet file: those from `first` to `last` - 1. The file's first row is number `offset` of all files'."""

    path: Path
    first: int
    last: int
    offset: int

    def sql(self, schema: Schema) -> str:
        """Give the text to select them from, in the types of the pinned schema; `__moment` is their number among all files' rows."""
        columns = f"{_typed(schema)}, file_row_number + {self.offset} AS __moment"
        # A hive column's text is cast as the column of all files was, whatever this file's alone would look like.
        file = f"read_parquet([{literal(exactly(self.path))}], file_row_number = true, hive_types_autocast = false)"
        some = f"file_row_number >= {self.first} AND file_row_number < {self.last}"
        return f"(SELECT {columns} FROM {file} WHERE {some})"


@contextmanager
def connected() -> Generator[duckdb.DuckDBPyConnection]:
    """Give a connection for one task: of one thread, since the cluster's engine decides how many tasks run at a time."""
    with duckdb.connect(config={"threads": 1}) as con:
        con.execute("SET TimeZone = 'UTC'")
        con.execute("SET enable_progress_bar = false")
        yield con


# blobs


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


def _by_part(blobs: Blobs) -> Iterator[tuple[int, Iterator[tuple[int, pa.Buffer]]]]:
    for part, some in itertools.groupby(pieces(blobs), lambda piece: piece[0]):
        yield part, ((kind, data) for _, kind, data in some)


# errors


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


# rows


@dataclass(frozen=True)
class PrepareSlices:
    """Task number i of reading: some rows of a file for one question.

    Args:
        tasks: (question, rows, cutover) of every task; rows readable at the cutover or after it do not count.
    """

    tasks: Sequence[tuple[Question, Slice, int | None]]

    def __call__(self, number: int) -> Blobs:
        question, some, cutover = self.tasks[number]
        with connected() as con:
            yield from prepared_blobs(
                con, question, some.sql(question.schema), str(some.path), cutover=cutover
            )


@dataclass(frozen=True)
class PrepareBatches:
    """Prepare what the cluster's engine has read: batches of raw rows.

    Args:
        question: what for.
        cutover: rows readable at it or after it do not count.
    """

    question: Question
    cutover: int | None

    def __call__(self, batches: Blobs) -> Blobs:
        reader = _reader(batches)
        if reader is None:
            return
        with connected() as con:
            con.register("raw", reader)
            relation = f"(SELECT {_typed(self.question.schema)} FROM raw)"
            yield from prepared_blobs(con, self.question, relation, "a table", cutover=self.cutover)


def _reader(batches: Blobs) -> pa.RecordBatchReader | None:
    """Give batches as DuckDB reads them; None when there is none, which says no schema either."""
    first = next(batches, None)
    if first is None:
        return None
    return pa.RecordBatchReader.from_batches(first.schema, itertools.chain([first], batches))


def prepared_blobs(
    con: duckdb.DuckDBPyConnection,
    question: Question,
    relation: str,
    where: str,
    *,
    stamped: bool = False,
    cutover: int | None = None,
) -> Blobs:
    """Prepare rows and put them into partitions: of facts where the source has an id, else of entities.

    Args:
        con: has the relation.
        question: what for.
        relation: what to select from, see `prepared_sql`.
        where: for errors.
        stamped: the relation has the stamps of commits.
        cutover: rows readable at it or after it do not count.
    """
    grouping, count = question.grouping, question.parts
    prepared = prepared_sql(
        grouping.source,
        question.schema,
        grouping.keys,
        grouping.inputs,
        relation,
        stamped=stamped,
        fact_words=True,
    )
    columns = _row_columns(question)
    of_entity = f"({_spread(grouping)} % {count})::INTEGER"
    part, kept = of_entity, f"{has_keys(grouping)} AND event_time IS NOT NULL"
    if grouping.source.id is not None:
        # Whoever a version belongs to, and if it is nobody: it may supersede one that is asked about.
        columns.append(f"CASE WHEN {has_keys(grouping)} THEN {of_entity} ELSE -1 END AS part_of_entity")
        part = f"(CASE WHEN fact_low IS NULL THEN tie ELSE hash(fact_low, 1) END % {count})::INTEGER"
        kept = "true"
    if cutover is not None:
        kept += f" AND available_at < {cutover}"
    try:
        reader = con.sql(f"SELECT {', '.join(columns)}, {part} AS part FROM ({prepared}) WHERE {kept}")
        for batch in reader.to_arrow_reader(max(BATCH_ROWS, _ROWS_A_BLOB * count)):
            yield from _cut_by(batch, "part", ROWS, question)
    except (duckdb.Error, pa.ArrowException, OSError) as error:
        raise _unreadable(f"source {grouping.source.name!r}", where, error) from error


def _unreadable(what: str, where: str, error: Exception) -> Exception:
    """Give the error of data that are not what they should be; where reading itself failed, the engine may try again."""
    if "IO Error" in str(error):
        return error
    return DataError(
        f"The data of {what} cannot be read.",
        where=where,
        found=str(error).splitlines()[0],
        do="check that every worker can read it.",
    )


def _typed(schema: Schema) -> str:
    return ", ".join(f"{quoted(name)}::{kind} AS {quoted(name)}" for name, kind in schema.items())


def _row_columns(question: Question) -> list[str]:
    grouping = question.grouping
    inputs = [f"input_{i}" for i in range(len(grouping.inputs))]
    columns = [*key_names(grouping), "event_time", "available_at", *inputs]
    if grouping.source.id is not None:
        columns += fact_columns(grouping, question.schema)
    if grouping.source.id is not None or is_ordered(grouping):
        columns.append("tie")
    return columns


def _spread(grouping: Grouping) -> str:
    """A number that says where an entity's rows and moments meet. DuckDB's joins use the hash of the keys alone, and must not find it the same for all."""
    return f"hash({', '.join(key_names(grouping))}, 1)"


def _cut_by(batch: pa.RecordBatch, column: str, kind: int, question: Question) -> Blobs:
    for some in _small(batch, question.parts):
        part = some.column(column).to_numpy().astype(np.int64)
        yield cut(some.drop_columns([column]), part, kind, question.number * question.parts, question.parts)


def _small(batch: pa.RecordBatch, parts: int) -> Iterator[pa.RecordBatch]:
    """Give a batch in pieces that a worker can hold several of, and whose blobs are large beside the kilobyte that each has besides its rows."""
    most = max(_MOST_BYTES, parts * _BLOB_BYTES)
    rows = max(most * batch.num_rows // max(batch.nbytes, 1), 1)
    return (batch.slice(first, rows) for first in range(0, batch.num_rows, rows))


@dataclass(frozen=True)
class Live:
    """From partitions of facts to partitions of entities: keep the versions that ever live, with the time at which each is superseded."""

    questions: Sequence[Question]

    def __call__(self, blobs: Blobs) -> Blobs:
        for part, some in _by_part(blobs):
            batches: list[pa.RecordBatch] = []
            for kind, data in some:
                if kind == ERROR:
                    yield blob(0, ERROR, data.to_pybytes())
                else:
                    batches.append(unpacked(data))
            if batches:
                question = self.questions[part // self.questions[0].parts]
                yield from _cut_by(_living(question, batches), "part_of_entity", ROWS, question)


def _living(question: Question, batches: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    reading = Reading([], question.world, question.grouping.source.corrections_within_microseconds)
    table = pa.Table.from_batches(batches).combine_chunks()
    (rows,) = table.append_column("entity", pa.array(np.zeros(table.num_rows, np.int64))).to_batches()
    lives = lived(reading.words(rows), reading)
    facts = [name for name in fact_columns(question.grouping, question.schema) if name != "version"]
    result = rows.drop_columns([*facts, "available_at", "entity"])
    for name, values in (("available_at", "available"), ("superseded_at", "superseded")):
        result = result.append_column(name, pa.array(lives[values]))
    return result.filter(pa.array(lives["entity"] >= 0))


@dataclass(frozen=True)
class Digests:
    """Task number i of taking what is in files: one file's digest."""

    files: Sequence[Path]

    def __call__(self, number: int) -> Blobs:
        yield blob(0, ROWS, json.dumps([number, *digest_of(self.files[number])]).encode())


@dataclass(frozen=True)
class Sums:
    """Give what is in batches of a table as its one row of `sums_sql`.

    Args:
        schema: of the columns that come.
    """

    schema: dict[str, str]

    def __call__(self, batches: Blobs) -> Blobs:
        reader = _reader(batches)
        if reader is None:
            return
        with connected() as con:
            con.register("raw", reader)
            found = con.execute(sums_sql(f"(SELECT {_typed(self.schema)} FROM raw)")).fetchall()[0]
        yield blob(0, ROWS, json.dumps(found).encode())


# moments


@dataclass(frozen=True)
class ReadMoments:
    """Put raw moments where they are needed.

    Args:
        read: gives the moments of a raw table.
        questions: what is asked.
        rows_a_part: so many moments are finished together.
        parts: how many such parts there are.
        skip: parts that are not wanted.
    """

    read: Callable[[pa.Table], MomentTable]
    questions: Sequence[Question]
    rows_a_part: int
    parts: int
    skip: frozenset[int]

    def asking(self, con: duckdb.DuckDBPyConnection, raw: pa.Table) -> Blobs:
        """Put them where the rows are that they ask about; `raw` has their numbers in `__moment`."""
        number, moments = self._wanted(raw)
        for question in self.questions if number.shape[0] else ():
            as_of = moments.at if question.as_of is None else np.full(number.shape[0], question.as_of)
            yield from moment_blobs(con, question, moments.fields, number, moments.at, as_of)

    def finishing(self, raw: pa.Table) -> Blobs:
        """Put them where they are finished."""
        number, moments = self._wanted(raw)
        table = moments.fields.rename_columns([f"field_{i}" for i in range(moments.fields.num_columns)])
        table = table.append_column("at", pa.array(moments.at)).append_column("__moment", pa.array(number))
        for batch in table.to_batches(max_chunksize=BATCH_ROWS):
            part = batch.column("__moment").to_numpy() // self.rows_a_part
            yield cut(batch, part, MOMENTS, 0, self.parts)

    def _wanted(self, raw: pa.Table) -> tuple[NDArray[np.int64], MomentTable]:
        number = raw["__moment"].to_numpy()
        wanted = ~np.isin(number // self.rows_a_part, list(self.skip))
        some = raw.filter(pa.array(wanted))
        return number[wanted], self.read(some.drop_columns(["__moment"]))


@dataclass(frozen=True)
class MomentSlices:
    """Task number i of reading moments: some rows of a file.

    Args:
        slices: of every task.
        schema: the columns that are read.
        timezone: on whose clocks naive timestamps are.
        moments: where they go.
        finishing: to where they are finished, rather than to what they ask about.
    """

    slices: Sequence[Slice]
    schema: dict[str, str]
    timezone: str | None
    moments: ReadMoments
    finishing: bool

    def __call__(self, number: int) -> Blobs:
        some = self.slices[number]
        with connected() as con:
            query = f"SELECT *{on_clocks(self.schema, self.timezone)} FROM {some.sql(self.schema)}"
            try:
                raw = con.sql(query).to_arrow_table()
            except duckdb.Error as error:
                raise _unreadable("the moments", str(some.path), error) from error
            yield from self.moments.finishing(raw) if self.finishing else self.moments.asking(con, raw)


def moment_blobs(
    con: duckdb.DuckDBPyConnection,
    question: Question,
    fields: pa.Table,
    number: NDArray[np.int64],
    at: NDArray[np.int64],
    as_of: NDArray[np.int64],
) -> Blobs:
    """Put moments into the partitions of the entities that they ask about.

    Args:
        con: any.
        question: what for.
        fields: the requests' fields, one row a moment.
        number: shape (moments,), each one's own.
        at, as_of: shape (moments,), microseconds.
    """
    grouping = question.grouping
    with asked_table(con, grouping, question.schema, fields):
        asked = con.sql(f"SELECT *, ({_spread(grouping)} % {question.parts})::INTEGER AS part FROM asked")
        for batch in asked.to_arrow_reader(max(BATCH_ROWS, _ROWS_A_BLOB * question.parts)):
            place = batch.column("__moment").to_numpy()
            moments = batch.drop_columns(["__moment"])
            for name, values in (("__moment", number), ("at", at), ("as_of", as_of)):
                moments = moments.append_column(name, pa.array(values[place]))
            yield from _cut_by(moments, "part", MOMENTS, question)


@dataclass(frozen=True)
class Answer:
    """From partitions of entities to answers: `__moment` and the columns of a question.

    Args:
        questions: all of them.
        memory: bytes of rows that a worker holds; more of them wait on its disk.
        rows_a_part: answers go where others about the same so many moments are; None: all of them go to one place.
        parts: how many such places there are.
    """

    questions: Sequence[Question]
    memory: int
    rows_a_part: int | None = None
    parts: int = 1

    def __call__(self, blobs: Blobs) -> Blobs:
        with connected() as con:
            for part, some in _by_part(blobs):
                moments: list[pa.RecordBatch] = []
                rest: Iterator[tuple[int, pa.Buffer]] = iter(())
                for kind, data in some:
                    if kind == ERROR:
                        yield blob(0, ERROR, data.to_pybytes())
                    elif kind == MOMENTS:
                        moments.append(unpacked(data))
                    else:
                        rest = itertools.chain([(kind, data)], some)
                        break
                if moments:
                    question = self.questions[part // self.questions[0].parts]
                    rows = (unpacked(data) for _, data in rest)
                    yield from self._placed(question, answered(con, question, moments, rows, self.memory))

    def _placed(self, question: Question, answers: pa.Table) -> Blobs:
        for batch in (some for whole in answers.to_batches() for some in _small(whole, self.parts)):
            part = np.zeros(batch.num_rows, np.int64)
            if self.rows_a_part is not None:
                part = batch.column("__moment").to_numpy() // self.rows_a_part
            yield cut(batch, part, FIRST_ANSWER + question.number, 0, self.parts)


def answered(
    con: duckdb.DuckDBPyConnection,
    question: Question,
    moments: Sequence[pa.RecordBatch],
    rows: Iterator[pa.RecordBatch],
    memory: int,
) -> pa.Table:
    """Give a partition's answers: `__moment` and the question's columns, in any order.

    Args:
        con: any.
        question: what is asked.
        moments: __moment, at, as_of, key_0..; at least one batch, be it empty.
        rows: prepared rows of the same entities; where the source has an id, those that `Live` gave.
        memory: bytes of rows that are held; more of them wait on disk.
    """
    grouping = question.grouping
    table = pa.Table.from_batches(moments).combine_chunks()
    at, as_of = (table[name].to_numpy().astype(np.int64) for name in ("at", "as_of"))
    lives = grouping.source.id is not None
    # What a cursor has of its own is gone with it.
    with con.cursor() as own, Scratch(memory) as scratch:
        place = pa.array(np.arange(table.num_rows))
        own.register("asked", table.select(key_names(grouping)).append_column("__moment", place))
        first = next(rows, None)
        prepared = _no_prepared_rows(question)
        if first is not None:
            prepared = "SELECT * FROM prepared_rows"
            coming = itertools.chain([first], rows)
            own.register("prepared_rows", pa.RecordBatchReader.from_batches(first.schema, coming))
        about = (own, grouping, question.schema, prepared, as_of, at)
        values = answer(*about, world=question.world, run=SERIAL, scratch=scratch, lived=lives)
    return pa.table({"__moment": table["__moment"], **values})


def no_rows(schema: Schema) -> str:
    """Give the text to select nothing from, in the types of a schema."""
    nothing = ", ".join(f"NULL::{kind} AS {quoted(name)}" for name, kind in schema.items())
    return f"(SELECT {nothing} WHERE false)"


def _no_prepared_rows(question: Question) -> str:
    """The query of prepared rows of nothing."""
    grouping, schema = question.grouping, question.schema
    about = (grouping.source, schema, grouping.keys, grouping.inputs, no_rows(schema))
    return f"SELECT *, 0::BIGINT AS superseded_at FROM ({prepared_sql(*about, fact_words=True)})"


@dataclass(frozen=True)
class Finish:
    """Do what is done with some moments when everything that they asked is answered.

    Args:
        questions: all of them.
        rows_a_part: moments.
        fields: the names of the requests' fields.
        finish: takes the part's number, its moments and every question's columns; gives what the driver is told.
    """

    questions: Sequence[Question]
    rows_a_part: int
    fields: Sequence[str]
    finish: Callable[[int, MomentTable, list[dict[str, pa.Array]]], bytes]

    def __call__(self, blobs: Blobs) -> Blobs:
        for part, some in _by_part(blobs):
            known: dict[int, list[pa.RecordBatch]] = {}
            for kind, data in some:
                if kind == ERROR:
                    yield blob(0, ERROR, data.to_pybytes())
                else:
                    known.setdefault(kind, []).append(unpacked(data))
            # Without moments there are only errors.
            if MOMENTS in known and all(FIRST_ANSWER + q.number in known for q in self.questions):
                yield blob(part, ROWS, self._finished(part, known))

    def _finished(self, part: int, known: dict[int, list[pa.RecordBatch]]) -> bytes:
        first, count = part * self.rows_a_part, sum(batch.num_rows for batch in known[MOMENTS])
        own = in_order(known.pop(MOMENTS), count, first)
        at = own.pop("at").to_numpy()
        moments = MomentTable(at, pa.table(list(own.values()), names=list(self.fields)))
        answers = [in_order(known.pop(FIRST_ANSWER + q.number), count, first) for q in self.questions]
        return self.finish(part, moments, answers)


def in_order(batches: Sequence[pa.RecordBatch], moments: int, first: int = 0) -> dict[str, pa.Array]:
    """Give columns in the order of the moments' numbers.

    Args:
        batches: `__moment` and the columns, in any order; at least one.
        moments: how many there are.
        first: the number of the first.
    """
    table = pa.Table.from_batches(batches).combine_chunks()
    number = table["__moment"].to_numpy() - first
    place = np.full(moments, -1, np.int64)
    place[number] = np.arange(number.shape[0])
    complete = number.shape[0] == moments and bool((place >= 0).all())
    assert complete, f"{number.shape[0]} answers to {moments} moments"
    columns = table.drop_columns(["__moment"]).take(pa.array(place))
    return {name: _one(columns[name]) for name in columns.column_names}


def _one(column: pa.ChunkedArray) -> pa.Array:
    whole = column.combine_chunks()
    return whole.chunk(0) if isinstance(whole, pa.ChunkedArray) else whole


def no_answers(con: duckdb.DuckDBPyConnection, question: Question) -> pa.RecordBatch:
    """Give the answers of no moments: what columns there are, and of which types."""
    kinds = {"text": pa.string(), "boolean": pa.bool_()}
    keys = [
        (name, kinds.get(kind_of(question.schema[key]), pa.int64()))
        for name, key in zip(key_names(question.grouping), question.grouping.keys, strict=True)
    ]
    schema = pa.schema([*((name, pa.int64()) for name in ("__moment", "at", "as_of")), *keys])
    nobody = pa.RecordBatch.from_pylist([], schema=schema)
    made = answered(con, question, [nobody], iter(()), 0)
    return pa.RecordBatch.from_pylist([], schema=made.schema)
