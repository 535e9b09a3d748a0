"""What the workers of a cluster do where blobs meet: find out which rows live, answer moments, finish parts. The cluster's engine brings to each what it needs, and nothing else.

A function here sees the blobs of one or several partitions, sorted by (part, kind).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from sameworld.asof.parts import Scratch
from sameworld.asof.prepared import Reading, lived
from sameworld.asof.rows import prepared_sql
from sameworld.asof.schema import kind_of
from sameworld.asof.threads import SERIAL
from sameworld.engines.answer import answer, fact_columns, key_names
from sameworld.engines.blobs import ERROR, FIRST_ANSWER, MOMENTS, ROWS, Blobs, blob, by_part, cut, unpacked
from sameworld.engines.interface import MomentTable
from sameworld.engines.kept_parts import rows_of
from sameworld.engines.reading import Question, connected, cut_by, no_rows, small


@dataclass(frozen=True)
class Live:
    """From partitions of facts to partitions of entities: keep the versions that ever live, with the time at which each is superseded."""

    questions: Sequence[Question]

    def __call__(self, blobs: Blobs) -> Blobs:
        for part, some in by_part(blobs):
            batches: list[pa.RecordBatch] = []
            for kind, data in some:
                if kind == ERROR:
                    yield blob(0, ERROR, data.to_pybytes())
                else:
                    batches.append(unpacked(data))
            if batches:
                question = self.questions[part // self.questions[0].parts]
                yield from cut_by(_living(question, batches), "part_of_entity", ROWS, question)


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
class Answer:
    """From partitions of entities to answers: `__moment` and the columns of a question.

    Args:
        questions: all of them.
        memory: bytes of rows that a worker holds; more of them wait on its disk.
        rows_a_part: answers go where others about the same so many moments are; None: all of them go to one place.
        parts: how many such places there are.
        kept: the number of a question -> the folder with its rows, for one whose rows do not come.
    """

    questions: Sequence[Question]
    memory: int
    rows_a_part: int | None = None
    parts: int = 1
    kept: Mapping[int, Path] = field(default_factory=dict[int, Path])

    def __call__(self, blobs: Blobs) -> Blobs:
        with connected() as con:
            for part, some in by_part(blobs):
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
                    if question.number in self.kept:
                        rows = rows_of(self.kept[question.number], part % question.parts)
                    yield from self._placed(question, answered(con, question, moments, rows, self.memory))

    def _placed(self, question: Question, answers: pa.Table) -> Blobs:
        for batch in (some for whole in answers.to_batches() for some in small(whole, self.parts)):
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
        for part, some in by_part(blobs):
            known: dict[int, list[pa.RecordBatch]] = {}
            for kind, data in some:
                if kind == ERROR:
                    yield blob(0, ERROR, data.to_pybytes())
                else:
                    known.setdefault(kind, []).append(unpacked(data))
            needed = [MOMENTS, *(FIRST_ANSWER + question.number for question in self.questions)]
            counts = {sum(batch.num_rows for batch in known.get(kind, ())) for kind in needed}
            # Where an error has gone elsewhere, something is missing here.
            if MOMENTS in known and len(counts) == 1:
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
