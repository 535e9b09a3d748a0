"""A table of moments -> when each was, and its request fields in their pinned types."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from sameworld.asof.schema import VALUE_TYPES, Schema, kind_of, supported
from sameworld.asof.values import float_column
from sameworld.definitions.moments import Moments
from sameworld.engines.interface import Engine, MomentTable
from sameworld.errors import DataError, nearest
from sameworld.training.logged import ANSWER, AS_OF, OWN, SERVED, opened

_WHAT = "the moments"


def request_schema(moments: Moments, schema: Schema) -> dict[str, str]:
    """Give request field -> family of its type (integer, float, boolean, text, instant), from the moments' columns."""
    families = {
        name: kind_of(kind)
        for name, kind in supported(schema).items()
        if name != moments.at and not name.startswith(OWN)
    }
    read_as = {"naive": "instant", "decimal": "float"}
    return {name: read_as.get(family, family) for name, family in families.items()}


def read_moments(engine: Engine, moments: Moments) -> MomentTable:
    """Read a table of moments.

    Raises:
        DataError: the time column is missing, naive without a timezone, or null somewhere.
    """
    moments = opened(moments, engine)
    schema = engine.describe(moments.data, _WHAT)
    _check_at(moments, schema)
    table = engine.table(moments.data, _WHAT, timezone=moments.timezone)
    return moment_table(table, moments, schema)


def moment_batches(engine: Engine, moments: Moments, rows: int) -> Iterator[MomentTable]:
    """Read a table of moments so many at a time, in its own order; one table without moments when there is none.

    Raises:
        DataError: as `read_moments`.
    """
    moments = opened(moments, engine)
    schema = engine.describe(moments.data, _WHAT)
    _check_at(moments, schema)
    for table in engine.batches(moments.data, _WHAT, rows=rows, timezone=moments.timezone):
        yield moment_table(table, moments, schema)


def _check_at(moments: Moments, schema: Schema) -> None:
    if moments.at not in schema:
        raise DataError(
            f"The moments have no column {moments.at!r}.",
            expected=f"nearest: {nearest(moments.at, schema)}",
            do="set at= to the column of the time of asking.",
        )


def moment_table(table: pa.Table, moments: Moments, schema: Schema) -> MomentTable:
    """Give a table's moments; naive timestamps have become instants.

    Raises:
        DataError: the time column is naive or null somewhere, or two columns have one name.
    """
    names = table.column_names
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(
            f"The moments have {names.count(twice)} columns {twice!r}.",
            expected="one column of each name",
            do="rename or drop the others.",
        )
    at = _instants(table[moments.at], moments.at)
    if at.null_count:
        raise DataError(
            f"{at.null_count} moments have no time.",
            where=f"column {moments.at!r}",
            found="null",
            do="leave such rows out of the moments.",
        )
    fields = {
        name: _field(table[name], family, name) for name, family in request_schema(moments, schema).items()
    }
    as_of = table[AS_OF].to_numpy() if AS_OF in table.column_names else None
    served = {
        name.removeprefix(SERVED): table[name].combine_chunks()
        for name in table.column_names
        if name.startswith(SERVED)
    }
    answer = table[ANSWER].to_numpy() if ANSWER in table.column_names else None
    return MomentTable(at.cast(pa.int64()).to_numpy(), pa.table(fields), as_of, served or None, answer)


def _field(column: pa.ChunkedArray, family: str, name: str) -> pa.Array:
    if family == "instant":
        return _instants(column, name)
    if pa.types.is_decimal(column.type):
        return float_column(column)
    return column.cast(VALUE_TYPES[family]).combine_chunks()


def _instants(column: pa.ChunkedArray, name: str) -> pa.Array:
    kind = column.type
    if not pa.types.is_timestamp(kind):
        raise DataError(
            f"Column {name!r} of the moments is no timestamp.",
            found=str(kind),
            do="cast it to a timestamp with a time zone.",
        )
    if kind.tz is None:
        raise DataError(
            f"Column {name!r} of the moments has naive timestamps.",
            expected="timestamps with a time zone, or timezone= on sw.Moments",
            found=str(kind),
            do="name the zone whose clocks they show, for example timezone='UTC'.",
        )
    return column.cast(pa.timestamp("us", tz="UTC"), safe=False).combine_chunks()
