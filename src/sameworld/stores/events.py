"""Events as they come over the wire -> raw rows in a source's pinned schema."""

from __future__ import annotations

import datetime
import decimal
from typing import Annotated, Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.types as arrow

from sameworld.asof.schema import Schema, arrow_type, kind_of
from sameworld.definitions.source import Source
from sameworld.errors import DataError, nearest

_ARROW = b"\xff\xff\xff\xff"
"""The first bytes of an Arrow stream; no JSON begins so."""
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
        self._where = f"events of source {source.name!r}"
        event = msgspec.defstruct(
            "Event",
            fields,
            rename=dict(zip(names, schema, strict=True)),
            forbid_unknown_fields=True,
            gc=False,
        )
        self._decode = msgspec.json.Decoder(list[event]).decode
        self._arrow = [arrow_type(kind) for kind in schema.values()]

    def read(self, events: bytes) -> pa.Table:
        """Give raw rows from a JSON array of events, or from an Arrow stream; columns that are left out are null.

        Raises:
            DataError: neither of them, an unknown column, a value of another type, an event without its time.
        """
        table = self._from_arrow(events) if events.startswith(_ARROW) else self._from_json(events)
        times = table[self.source.event_time]
        if times.null_count:
            number = int(np.argmin(times.is_valid().to_numpy()))
            raise DataError(
                f"Event {number} has no time.",
                where=self._where,
                expected=f"{self.source.event_time!r}: when it happened",
                found="nothing",
                do="send the event with its time.",
            )
        return table

    def _from_json(self, events: bytes) -> pa.Table:
        try:
            rows = self._decode(events)
            columns = list(zip(*map(msgspec.structs.astuple, rows), strict=True)) or [()] * len(self._columns)
            arrays = [pa.array(column, kind) for column, kind in zip(columns, self._arrow, strict=True)]
        except (msgspec.ValidationError, msgspec.DecodeError) as error:
            raise self._explain(error) from error
        except (pa.ArrowInvalid, OverflowError) as error:
            raise self._unfitting(error) from error
        return pa.table(dict(zip(self._columns, arrays, strict=True)))

    def _from_arrow(self, events: bytes) -> pa.Table:
        try:
            with pa.ipc.open_stream(events) as stream:
                table = stream.read_all()
            table.validate(full=True)
        except (pa.ArrowException, OSError) as error:
            raise DataError(
                "The events cannot be read.",
                where=self._where,
                expected="an Arrow stream, as pyarrow.ipc.new_stream writes it",
                found=str(error),
                do="correct the events; nothing was taken.",
            ) from error
        for name in table.column_names:
            if table.column_names.count(name) > 1 or name not in self.schema:
                raise self._unknown(name, "an Arrow column, perhaps twice")
        columns: dict[str, pa.ChunkedArray] = {}
        for name, kind in zip(self._columns, self._arrow, strict=True):
            if name not in table.column_names:
                columns[name] = pa.chunked_array([pa.nulls(table.num_rows, kind)])
                continue
            column = table[name]
            if not _is_like(column.type, kind):
                raise self._unfitting(f"column {name!r} of type {column.type} for {kind}")
            try:
                columns[name] = column.cast(kind)
            except pa.ArrowException as error:
                raise self._unfitting(error) from error
        return pa.table(columns).combine_chunks()

    def _unfitting(self, found: object) -> DataError:
        return DataError(
            "An event's value does not fit its column.",
            where=self._where,
            found=str(found),
            do="send values of the column's type.",
        )

    def _unknown(self, name: str, found: str) -> DataError:
        return DataError(
            f"Source {self.source.name!r} has no column {name!r}.",
            where=self._where,
            expected=f"nearest: {nearest(name, self._columns)}",
            found=found,
            do="correct the column's name, or leave it out.",
        )

    def _explain(self, error: Exception) -> DataError:
        found = str(error)
        if "unknown field" in found:
            return self._unknown(found.split("unknown field `", 1)[1].split("`", 1)[0], found)
        if "timezone" in found:
            return DataError(
                "An event's timestamp does not fit its column.",
                where=self._where,
                expected="a time with its offset, such as '2026-01-31T12:00:00Z', where the column is an instant",
                found=found,
                do="send timestamps in ISO 8601.",
            )
        return DataError(
            "The events cannot be read.",
            where=self._where,
            expected="a JSON array of objects whose values have the columns' types",
            found=found,
            do="correct the events; nothing was taken.",
        )


def _is_like(kind: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether values of an Arrow type may stand for those of another, as in JSON: what does not fit one by one is refused when they are cast."""
    if arrow.is_dictionary(kind):
        return _is_like(kind.value_type, wanted)
    if arrow.is_null(kind):
        return True
    if arrow.is_timestamp(wanted):
        return arrow.is_timestamp(kind) and (kind.tz is None) == (wanted.tz is None)
    if arrow.is_floating(wanted):
        return arrow.is_integer(kind) or arrow.is_floating(kind)
    if arrow.is_decimal(wanted):
        return arrow.is_integer(kind) or arrow.is_decimal(kind)
    if arrow.is_string(wanted):
        return arrow.is_string(kind) or arrow.is_large_string(kind) or arrow.is_string_view(kind)
    return any(same(kind) and same(wanted) for same in (arrow.is_integer, arrow.is_boolean, arrow.is_date))
