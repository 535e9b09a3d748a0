"""Events as they come over the wire -> raw rows in a source's pinned schema -> prepared rows, by the same query as in batch."""

from __future__ import annotations

import datetime
import decimal
import threading
from collections.abc import Sequence
from typing import Annotated, Any

import duckdb
import msgspec
import pyarrow as pa

from sameworld.asof.plan import Grouping, Input
from sameworld.asof.rows import prepared_sql
from sameworld.asof.schema import Schema, arrow_type, kind_of
from sameworld.definitions.source import Source
from sameworld.errors import DataError, nearest

_AWARE = Annotated[datetime.datetime, msgspec.Meta(tz=True)]
_NAIVE = Annotated[datetime.datetime, msgspec.Meta(tz=False)]


def _python_type(duckdb_type: str) -> Any:
    match kind_of(duckdb_type):
        case "integer":
            return int
        case "float":
            return float
        case "decimal":
            return decimal.Decimal  # from a number or a text, digit by digit
        case "boolean":
            return bool
        case "instant":
            return _AWARE
        case "naive":
            return datetime.date if duckdb_type == "DATE" else _NAIVE
        case _:
            return str


class EventReader:
    """Reads the events of one source.

    Args:
        source: the definition.
        schema: its pinned schema; JSON is cast to it or refused.
    """

    def __init__(self, source: Source, schema: Schema) -> None:
        self.source = source
        self.schema = dict(schema)
        names = [f"c{i}" for i in range(len(schema))]
        fields = [
            (name, _python_type(kind) | None, None) for name, kind in zip(names, schema.values(), strict=True)
        ]
        self._columns = list(schema)
        self._attributes = names
        event = msgspec.defstruct(
            "Event",
            fields,
            rename=dict(zip(names, schema, strict=True)),
            forbid_unknown_fields=True,
            gc=False,
        )
        self._decode = msgspec.json.Decoder(list[event]).decode
        self._time = names[self._columns.index(source.event_time)]
        self._arrow = [arrow_type(kind) for kind in schema.values()]

    def read(self, events: bytes) -> pa.Table:
        """Give raw rows from a JSON array of events; columns that are left out are null.

        Raises:
            DataError: not an array of objects, an unknown column, a value of another type, an event without its time.
        """
        where = f"events of source {self.source.name!r}"
        try:
            rows = self._decode(events)
            columns = [
                pa.array([getattr(row, name) for row in rows], kind)
                for name, kind in zip(self._attributes, self._arrow, strict=True)
            ]
        except (msgspec.ValidationError, msgspec.DecodeError) as error:
            raise self._explain(error, where) from error
        except (pa.ArrowInvalid, OverflowError) as error:
            raise DataError(
                "An event's value does not fit its column.",
                where=where,
                found=str(error),
                do="send values of the column's type.",
            ) from error
        for number, row in enumerate(rows):
            if getattr(row, self._time) is None:
                raise DataError(
                    f"Event {number} has no time.",
                    where=where,
                    expected=f"{self.source.event_time!r}: when it happened",
                    found="nothing",
                    do="send the event with its time.",
                )
        return pa.table(dict(zip(self._columns, columns, strict=True)))

    def _explain(self, error: Exception, where: str) -> DataError:
        found = str(error)
        if "unknown field" in found:
            name = found.split("unknown field `", 1)[1].split("`", 1)[0]
            return DataError(
                f"Source {self.source.name!r} has no column {name!r}.",
                where=where,
                expected=f"nearest: {nearest(name, self._columns)}",
                found=found,
                do="correct the column's name, or leave it out.",
            )
        if "timezone" in found:
            return DataError(
                "An event's timestamp does not fit its column.",
                where=where,
                expected="a time with its offset, such as '2026-01-31T12:00:00Z', where the column is an instant",
                found=found,
                do="send timestamps in ISO 8601.",
            )
        return DataError(
            "The events cannot be read.",
            where=where,
            expected="a JSON array of objects whose values have the columns' types",
            found=found,
            do="correct the events; nothing was taken.",
        )


class _Stream:
    """A table that a prepared statement reads anew at each execution."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        return self.table.__arrow_c_stream__(requested_schema)


class PreparedRow(msgspec.Struct, gc=False):
    """One prepared row: what the store needs of it."""

    event_time: int | None
    available_at: int | None
    fact: str | None
    version: int
    deleted: bool
    tie: int
    keys: list[Any]
    inputs: list[Any]


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

    def prepare(self, raw: pa.Table) -> list[PreparedRow]:
        """Give prepared rows in the order of the raw ones."""
        with self._lock:  # the thread that prepares and the one that applies what another process logged share the statement
            self._stream.table = raw
            rows = self._con.execute("EXECUTE prepared").fetchall()
        after = 6 + len(self.keys)
        return [PreparedRow(*row[:6], list(row[6:after]), list(row[after:])) for row in rows]  # pyright: ignore[reportCallIssue] # the query's first six columns
