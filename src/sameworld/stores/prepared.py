"""Raw rows -> prepared rows (see `rows`), by the same query as in batch."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow as pa

from sameworld.asof.plan import Grouping, Input
from sameworld.asof.rows import prepared_sql
from sameworld.asof.schema import arrow_type
from sameworld.stores.events import EventReader

_FEW_ROWS = 256
"""Up to so many are fetched as Python's values: an Arrow table costs DuckDB a second query, and then every look at a column more than the values do."""


@dataclass(frozen=True)
class Prepared:
    """Prepared rows.

    Args:
        schema: of their columns.
        rows: the rows; or, where they are many, a table of them.
    """

    schema: pa.Schema
    rows: list[tuple[Any, ...]] | pa.Table

    def __len__(self) -> int:
        return len(self.rows) if isinstance(self.rows, list) else self.rows.num_rows

    def values(self, name: str) -> list[Any]:
        """Give a column as Python's values."""
        if isinstance(self.rows, list):
            place = self.schema.get_field_index(name)
            return [row[place] for row in self.rows]
        return self.rows[name].to_pylist()

    def array(self, name: str) -> pa.Array:
        """Give a column as an array."""
        if isinstance(self.rows, list):
            return pa.array(self.values(name), self.schema.field(name).type)
        column = self.rows[name]
        return (
            column.chunk(0)
            if column.num_chunks == 1
            else pa.concat_arrays(column.chunks)
            if column.num_chunks
            else pa.array([], column.type)
        )

    def parts(self, sizes: Sequence[int]) -> list[Prepared]:
        """Cut into runs of so many rows."""
        rows = self.rows
        ends = list(itertools.accumulate(sizes))
        cuts = [(end - size, end) for size, end in zip(sizes, ends, strict=True)]
        if isinstance(rows, list):
            return [Prepared(self.schema, rows[start:end]) for start, end in cuts]
        return [Prepared(self.schema, rows.slice(start, end - start)) for start, end in cuts]

    def take(self, order: Sequence[int]) -> Prepared:
        """Give some rows, in an order of their own."""
        rows = (
            [self.rows[row] for row in order]
            if isinstance(self.rows, list)
            else self.rows.take(pa.array(order, pa.int64()))
        )
        return Prepared(self.schema, rows)


def together(parts: Sequence[Prepared]) -> Prepared:
    """Give the rows of several as one."""
    if len(parts) == 1:
        return parts[0]
    lists = [part.rows for part in parts if isinstance(part.rows, list)]
    schema = parts[0].schema
    if len(lists) == len(parts):
        return Prepared(schema, list(itertools.chain.from_iterable(lists)))
    tables = [
        pa.Table.from_arrays([part.array(name) for name in schema.names], schema=schema) if isinstance(part.rows, list) else part.rows
        for part in parts
    ]  # fmt: skip
    return Prepared(schema, pa.concat_tables(tables).combine_chunks())


class _Stream:
    """A table that a prepared statement reads anew at each execution."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        return self.table.__arrow_c_stream__(requested_schema)


class Preparer:
    """Prepares the rows of one source for all its groupings at once.

    Args:
        reader: whose rows.
        groupings: those over the source. `keys` and `inputs` of a prepared row are the union of theirs: see `places`.
    """

    def __init__(self, reader: EventReader, groupings: Sequence[Grouping]) -> None:
        self.reader = reader
        self.keys: list[str] = sorted({key for grouping in groupings for key in grouping.keys})
        self.inputs: list[Input] = list(
            dict.fromkeys(item for grouping in groupings for item in grouping.inputs)
        )
        self.places = {
            grouping.content: (
                [self.keys.index(k) for k in grouping.keys],
                [self.inputs.index(i) for i in grouping.inputs],
            )
            for grouping in groupings
        }
        self._lock = threading.Lock()
        self._con = duckdb.connect(config={"threads": 1})
        self._con.execute("SET TimeZone = 'UTC'")
        empty = pa.table({name: pa.array([], arrow_type(kind)) for name, kind in reader.schema.items()})
        self._stream = _Stream(empty)
        self._con.register("raw", self._stream)
        self._con.execute(
            f"PREPARE prepared AS {prepared_sql(reader.source, reader.schema, self.keys, self.inputs, 'raw')}"
        )
        (self._execute,) = self._con.extract_statements("EXECUTE prepared")
        self.schema: pa.Schema = self._con.sql("EXECUTE prepared").to_arrow_table().schema

    def prepare(self, raw: pa.Table) -> Prepared:
        """Give prepared rows in the order of the raw ones."""
        with self._lock:  # the thread that commits and the one that fills share the statement
            self._stream.table = raw
            if raw.num_rows <= _FEW_ROWS:
                return Prepared(self.schema, self._con.execute(self._execute).fetchall())
            return Prepared(self.schema, self._con.sql("EXECUTE prepared").to_arrow_table())
