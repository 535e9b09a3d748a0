"""What the workers of a cluster read: slices of files and batches of tables become blobs of rows and of moments, in partitions.

Each partition has all rows of its entities (or, before that, all versions of its facts) and all moments that ask about them.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sameworld.asof.plan import Grouping
from sameworld.asof.prepared import World
from sameworld.asof.rows import literal, prepared_sql, quoted
from sameworld.asof.schema import Schema
from sameworld.engines.answer import BATCH_ROWS, asked_table, fact_columns, has_keys, is_ordered, key_names
from sameworld.engines.blobs import MOMENTS, ROWS, Blobs, blob, cut
from sameworld.engines.duckdb import digest_of, exactly, on_clocks, sums_sql
from sameworld.engines.interface import MomentTable
from sameworld.errors import DataError

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
        columns = f"{typed(schema)}, file_row_number + {self.offset} AS __moment"
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
        reader = reader_of(batches)
        if reader is None:
            return
        with connected() as con:
            con.register("raw", reader)
            relation = f"(SELECT {typed(self.question.schema)} FROM raw)"
            yield from prepared_blobs(con, self.question, relation, "a table", cutover=self.cutover)


def reader_of(batches: Iterator[pa.RecordBatch]) -> pa.RecordBatchReader | None:
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
            yield from cut_by(batch, "part", ROWS, question)
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


def typed(schema: Schema) -> str:
    """Give the text to select the columns of a schema in its types."""
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


def cut_by(batch: pa.RecordBatch, column: str, kind: int, question: Question) -> Blobs:
    for some in small(batch, question.parts):
        part = some.column(column).to_numpy().astype(np.int64)
        yield cut(some.drop_columns([column]), part, kind, question.number * question.parts, question.parts)


def small(batch: pa.RecordBatch, parts: int) -> Iterator[pa.RecordBatch]:
    """Give a batch in pieces that a worker can hold several of, and whose blobs are large beside the kilobyte that each has besides its rows."""
    most = max(_MOST_BYTES, parts * _BLOB_BYTES)
    rows = max(most * batch.num_rows // max(batch.nbytes, 1), 1)
    return (batch.slice(first, rows) for first in range(0, batch.num_rows, rows))


def duckdb_types(kinds: Mapping[str, Any], do: str) -> dict[str, str]:
    """Give the DuckDB types that carry the values of a table of a cluster's own.

    Args:
        kinds: column -> Arrow type, or what it has instead of one.
        do: how to give a column an Arrow type.

    Raises:
        DataError: a column's type does not say what its values are.
    """
    vague = [f"{name!r} of {kind}" for name, kind in kinds.items() if not isinstance(kind, pa.DataType)]
    if vague:
        raise DataError(
            "The type of a column does not say what its values are.",
            expected="a type of Arrow's",
            found=", ".join(vague[:3]),
            do=do,
        )
    with connected() as con:
        con.register("nothing", pa.schema(list(kinds.items())).empty_table())
        return {row[0]: row[1] for row in con.execute("DESCRIBE SELECT * FROM nothing").fetchall()}


def no_rows(schema: Schema) -> str:
    """Give the text to select nothing from, in the types of a schema."""
    nothing = ", ".join(f"NULL::{kind} AS {quoted(name)}" for name, kind in schema.items())
    return f"(SELECT {nothing} WHERE false)"


# what is in data


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
        reader = reader_of(batches)
        if reader is None:
            return
        with connected() as con:
            con.register("raw", reader)
            found = con.execute(sums_sql(f"(SELECT {typed(self.schema)} FROM raw)")).fetchall()[0]
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
            yield from cut_by(moments, "part", MOMENTS, question)
