"""A source's raw rows -> prepared rows, as one DuckDB query text: the same in batch and at every commit of the online store.

A prepared row has event_time, available_at (microseconds since 1970, null: never), fact, version, deleted, tie, key_0.., input_0...
`tie` is a hash of the row's content: it makes every order total and never depends on the order of a file.
"""

from __future__ import annotations

from collections.abc import Sequence

from sameworld.asof.plan import Input
from sameworld.asof.schema import Schema, family_of, kind_of, scale_of
from sameworld.definitions.availability import AtEventTime, AvailableColumn, Daily, DailyInZone, Delay
from sameworld.definitions.source import Source

_DAY = 86_400_000_000
RESERVED = frozenset({"__event_us", "__row", "__available_us", "__sequence", "__moment"})
"""Names of columns that queries here add to those of a table."""
_LOWEST = "(-9223372036854775808)::BIGINT"


def quoted(name: str) -> str:
    """Quote an identifier for DuckDB."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """Quote a string for DuckDB."""
    return "'" + text.replace("'", "''") + "'"


def naive_sql(column: str, timezone: str | None) -> str:
    """A naive timestamp column as an instant: what the clocks of `timezone` showed."""
    return f"timezone({literal(timezone or 'UTC')}, {quoted(column)}::TIMESTAMP)"


def instant_sql(column: str, duckdb_type: str, timezone: str | None) -> str:
    """Microseconds since 1970 of a timestamp column; a naive one is read on the clocks of `timezone`."""
    name = quoted(column)
    if kind_of(duckdb_type) == "naive":
        name = naive_sql(column, timezone)
    return f"try(epoch_us({name}))"


def available_sql(source: Source, schema: Schema) -> str:
    """Microseconds at which the definition says a row becomes readable, beside a column `__event_us` of its event time."""
    match source.readable:
        case AvailableColumn(column):
            return instant_sql(column, schema[column], source.timezone)
        case Delay() as declared:
            return f"try(__event_us + {declared.microseconds})"
        case DailyInZone() as declared:
            zone = literal(declared.timezone)
            ready = f"(__event_us + {declared.lag_microseconds})"
            midnight = f"date_trunc('day', timezone({zone}, make_timestamptz({ready})))"
            # The day before counts, too: clocks that are put back at midnight are on it once more.
            landings = [
                f"epoch_us(timezone({zone}, {midnight} + to_microseconds({days * _DAY + declared.at_microseconds})))"
                for days in (-1, 0, 1)
            ]
            *earlier, last = landings
            chosen = " ".join(f"WHEN {landing} >= {ready} THEN {landing}" for landing in earlier)
            return f"try(CASE {chosen} ELSE {last} END)"
        case Daily() as declared:
            ready = f"(__event_us + {declared.lag_microseconds} - {declared.at_microseconds})"
            past = (
                f"(({ready} % {_DAY} + {_DAY}) % {_DAY})"  # microseconds since the last publication, 0 at one
            )
            return f"try(__event_us + {declared.lag_microseconds} + CASE WHEN {past} = 0 THEN 0 ELSE {_DAY} - {past} END)"
        case AtEventTime():
            return "__event_us"


def tie_sql(schema: Schema) -> str:
    """A total order among rows that differ in nothing but their content: DuckDB's own 64-bit hash of all columns, of one version of DuckDB."""
    return f"hash({', '.join(quoted(name) for name in sorted(schema))})"


def version_sql(source: Source, schema: Schema) -> str:
    """The order of a fact's corrections, as BIGINT; 0 for every row when arrival orders them; null comes first."""
    if source.version is None:
        return "0::BIGINT"
    if kind_of(schema[source.version]) in ("instant", "naive"):
        return f"coalesce({instant_sql(source.version, schema[source.version], source.timezone)}, {_LOWEST})"
    return f"coalesce({quoted(source.version)}::BIGINT, {_LOWEST})"


def key_sql(column: str, schema: Schema) -> str:
    """A key as a value that any store can write: BIGINT, VARCHAR or BOOLEAN."""
    match kind_of(schema[column]):
        case "integer":
            return f"{quoted(column)}::BIGINT"
        case "instant":
            return f"try(epoch_us({quoted(column)}))"
        case _:
            return quoted(column)


def fact_words_sql(source: Source, schema: Schema) -> tuple[str, str | None]:
    """A fact's id as one 64-bit word, or as two (the MD5 of its text) where one cannot tell all ids apart."""
    assert source.id is not None
    match kind_of(schema[source.id]):
        case "integer" | "boolean":
            return f"{quoted(source.id)}::BIGINT", None
        case "instant":
            return f"try(epoch_us({quoted(source.id)}))", None
        case _:
            text = f"{quoted(source.id)}::VARCHAR"
            return tuple(
                f"(md5_number_{half}({text})::HUGEINT - 9223372036854775808)::BIGINT"
                for half in ("lower", "upper")
            )  # type: ignore[return-value] # two of them


def input_sql(item: Input, schema: Schema, timezone: str | None) -> str:
    """One input of a grouping. A condition that raises for a row does not hold for it."""
    condition = f"coalesce(try(({item.condition})::BOOLEAN), false)" if item.condition else "true"
    if item.column is None:
        return condition
    name, kind = quoted(item.column), schema[item.column]
    value = {
        "integer": f"{name}::BIGINT",
        "float": f"{name}::DOUBLE",
        # As an integer of its smallest unit, so that sums stay exact.
        "decimal": f"({name} * {10 ** (scale_of(family_of(kind)) or 0)}::DECIMAL(19, 0))::BIGINT",
        "instant": instant_sql(item.column, kind, timezone),
        "naive": instant_sql(item.column, kind, timezone),
    }.get(kind_of(kind), name)
    return f"CASE WHEN {condition} THEN {value} END" if item.condition else value


def prepared_sql(
    source: Source,
    schema: Schema,
    keys: Sequence[str],
    inputs: Sequence[Input],
    relation: str,
    *,
    stamped: bool = False,
    fact_words: bool = False,
    numbered: bool = False,
) -> str:
    """The query that prepares a source's rows for one grouping.

    Args:
        source: the definition.
        schema: the source's pinned schema.
        keys, inputs: the grouping's.
        relation: what to select from; has at least the columns of `schema`.
        stamped: the relation has `__available_us`, the stamp of the commit that made each row readable, null where the row says it itself (in a replay).
        fact_words: give `fact_low` and perhaps `fact_high`, too: see `fact_words_sql`.
        numbered: give `row`, the number of the row in the relation's own order, too.
    """
    fact = f"{quoted(source.id)}::VARCHAR" if source.id else "NULL::VARCHAR"
    deleted = f"coalesce({quoted(source.deleted)}::BOOLEAN, false)" if source.deleted else "false"
    columns = [f"{key_sql(key, schema)} AS key_{i}" for i, key in enumerate(keys)]
    columns += [f"{input_sql(item, schema, source.timezone)} AS input_{i}" for i, item in enumerate(inputs)]
    if fact_words and source.id:
        low, high = fact_words_sql(source, schema)
        columns += [f"{low} AS fact_low"] + ([f"{high} AS fact_high"] if high else [])
    if numbered:
        columns.append("__row AS row")
        relation = f"(SELECT *, row_number() OVER () - 1 AS __row FROM {relation})"
    inner = f"SELECT *, {instant_sql(source.event_time, schema[source.event_time], source.timezone)} AS __event_us FROM {relation}"
    declared = available_sql(source, schema)
    available = f"coalesce(__available_us, {declared})" if stamped else declared
    return (
        f"SELECT __event_us AS event_time, {available} AS available_at, {fact} AS fact, {version_sql(source, schema)} AS version, "
        f"{', '.join([f'{deleted} AS deleted', f'{tie_sql(schema)} AS tie', *columns])} FROM ({inner})"
    )
