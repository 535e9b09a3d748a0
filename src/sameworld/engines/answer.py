"""Prepared rows and moments on a DuckDB connection -> values: what every engine does with them, be it once for everything or once for each partition."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sameworld.asof.aggregations import AGGREGATIONS
from sameworld.asof.entity_parts import EntityParts
from sameworld.asof.moments import in_order, values_at
from sameworld.asof.parts import Scratch
from sameworld.asof.plan import Grouping
from sameworld.asof.prepared import Reading, World
from sameworld.asof.rows import fact_words_sql
from sameworld.asof.schema import Schema, kind_of
from sameworld.asof.threads import Threads

BATCH_ROWS = 1_000_000
_KINDS = {"integer": "BIGINT", "text": "VARCHAR", "boolean": "BOOLEAN", "instant": "BIGINT"}


def key_names(grouping: Grouping) -> list[str]:
    """Give the names of a grouping's keys in prepared rows."""
    return [f"key_{i}" for i in range(len(grouping.keys))]


def has_keys(grouping: Grouping) -> str:
    """Give the condition that a row belongs to somebody."""
    return " AND ".join(f"{key} IS NOT NULL" for key in key_names(grouping))


def keys_sql(grouping: Grouping, schema: Schema) -> str:
    """Give the moments' fields that are a grouping's keys as the prepared rows have them."""
    return ", ".join(
        f"{f'epoch_us({name})' if kind_of(schema[key]) == 'instant' else name}::{_KINDS[kind_of(schema[key])]} AS {name}"
        for name, key in zip(key_names(grouping), grouping.keys, strict=True)
    )


@contextmanager
def asked_table(
    con: duckdb.DuckDBPyConnection, grouping: Grouping, schema: Schema, keys: pa.Table
) -> Generator[None]:
    """Have the moments' keys in a table `asked`; `keys` has the fields of the grouping's keys, one row a moment."""
    given = keys.select(list(grouping.keys)).rename_columns(key_names(grouping))
    con.register("asked_keys", given.append_column("__moment", pa.array(np.arange(keys.num_rows))))
    con.execute(
        f"CREATE OR REPLACE TEMP TABLE asked AS SELECT __moment, {keys_sql(grouping, schema)} FROM asked_keys"
    )
    con.unregister("asked_keys")
    yield
    con.execute("DROP TABLE IF EXISTS asked")


def number_entities(con: duckdb.DuckDBPyConnection, keys: str, names: str) -> int:
    """Have a table `entities` of keys with their numbers, from 0; give how many there are."""
    con.execute(
        f"CREATE OR REPLACE TEMP TABLE entities AS SELECT {names}, row_number() OVER () - 1 AS entity FROM ({keys})"
    )
    return int(con.execute("SELECT count(*) FROM entities").fetchall()[0][0])


def codes_of(
    con: duckdb.DuckDBPyConnection, grouping: Grouping, entities: str, moments: int
) -> NDArray[np.int64]:
    """Give the number of each asked moment's entity; -1 where it has none."""
    names = ", ".join(key_names(grouping))
    found = con.execute(f"SELECT __moment, entity FROM asked JOIN {entities} USING ({names})").fetchnumpy()
    codes = np.full(moments, -1, np.int64)
    codes[np.asarray(found["__moment"])] = np.asarray(found["entity"])
    return codes


def is_ordered(grouping: Grouping) -> bool:
    """Whether some read depends on the order of rows that happened at once."""
    return any(AGGREGATIONS[read.operation].ordered for read in grouping.reads)


def numbered_batches(
    con: duckdb.DuckDBPyConnection,
    grouping: Grouping,
    schema: Schema,
    prepared: str,
    *,
    ordered: bool,
    numbered: bool = False,
    lived: bool = False,
) -> Iterator[pa.RecordBatch]:
    """Give prepared rows with the number of their entity in the table `entities`, in any order, as `Reading` takes them.

    Args:
        con, grouping, schema: as everywhere here.
        prepared: the query.
        ordered: give ties, too.
        numbered: give each row's number, too.
        lived: the rows are those of facts that ever live, with `superseded_at`.
    """
    source, names = grouping.source, ", ".join(key_names(grouping))
    inputs = [f"input_{i}" for i in range(len(grouping.inputs))]
    columns = ["event_time", "available_at", *inputs, *(["row"] if numbered else [])]
    joined, entity = f"({prepared}) JOIN entities USING ({names})", "entity"
    if lived:
        columns += ["version", "superseded_at"]
    elif source.id is not None:
        # A version that belongs to nobody asked about still supersedes one that does.
        joined = f"({prepared}) LEFT JOIN entities USING ({names})"
        entity = "coalesce(entity, -1) AS entity"
        columns += fact_columns(grouping, schema)
    if source.id is not None or ordered:
        columns.append("tie")
    reader = con.sql(f"SELECT {entity}, {', '.join(columns)} FROM {joined}").to_arrow_reader(BATCH_ROWS)
    yield pa.RecordBatch.from_pylist([], schema=reader.schema)
    yield from reader


def fact_columns(grouping: Grouping, schema: Schema) -> list[str]:
    """Give the names of the columns that tell the versions of facts apart."""
    high = ["fact_high"] if fact_words_sql(grouping.source, schema)[1] else []
    return ["version", "deleted", "fact_low", *high]


def answer(
    con: duckdb.DuckDBPyConnection,
    grouping: Grouping,
    schema: Schema,
    prepared: str,
    as_of: NDArray[np.int64],
    at: NDArray[np.int64],
    *,
    world: World,
    run: Threads,
    scratch: Scratch,
    rows: int = 0,
    lived: bool = False,
) -> dict[str, pa.Array]:
    """Give every read of a grouping at every moment of the table `asked`, in their order; only rows of entities asked about are kept.

    Args:
        con: has the table `asked`: __moment from 0, key_0...
        grouping, schema: the grouping and its source's pinned schema.
        prepared: the query of its prepared rows.
        as_of, at: shape (moments,), microseconds.
        world: which rows count as readable when.
        run: threads.
        scratch: where rows wait that are too many for memory.
        rows: how many there are at most, if that is known.
        lived: the rows are those of facts that ever live, with `superseded_at`.

    Raises:
        AsOfError: an integer sum does not fit int64.
    """
    names = ", ".join(key_names(grouping))
    entities = number_entities(con, f"SELECT DISTINCT {names} FROM asked WHERE {has_keys(grouping)}", names)
    codes = codes_of(con, grouping, "entities", at.shape[0])
    families = [item.family(schema) for item in grouping.inputs]
    reading = Reading(families, world, grouping.source.corrections_within_microseconds)
    batches = numbered_batches(con, grouping, schema, prepared, ordered=is_ordered(grouping), lived=lived)
    parts = EntityParts(map(reading.words, batches), reading, entities, rows=rows, run=run, scratch=scratch)
    con.execute("DROP TABLE IF EXISTS entities")
    moments = in_order(codes, entities, as_of, at, run)
    values = values_at(parts, moments, grouping.reads, run)
    return {name: column.chunk(0) for name, column in values.items()}
