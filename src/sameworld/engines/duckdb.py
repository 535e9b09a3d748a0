"""One machine: DuckDB reads, evaluates row expressions and joins entity numbers; the order of rows and the kernel do the rest."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sameworld.asof.aggregations import AGGREGATIONS, NEVER
from sameworld.asof.columns import InputColumn, input_column
from sameworld.asof.plan import Grouping
from sameworld.asof.prepared import World, sorted_rows
from sameworld.asof.read import read_windows
from sameworld.asof.rows import (
    available_sql,
    fact_words_sql,
    instant_sql,
    literal,
    naive_sql,
    prepared_sql,
    quoted,
)
from sameworld.asof.schema import Schema, kind_of
from sameworld.asof.threads import Threads
from sameworld.asof.versions import SORTED_BY
from sameworld.definitions.source import Source
from sameworld.engines.interface import Asked, Rows
from sameworld.errors import DataError

_BATCH_ROWS = 1_000_000


class DuckDBEngine:
    """The engine of one machine.

    Args:
        folder: what relative paths in definitions start from.
        threads: how many cores to use; all by default.
        memory_limit: DuckDB's own, such as "4GB"; it spills to disk beyond it.
    """

    def __init__(
        self, folder: Path | None = None, *, threads: int | None = None, memory_limit: str | None = None
    ) -> None:
        self._folder = folder or Path()
        self._threads = threads or os.cpu_count() or 1
        config: dict[str, Any] = {"threads": self._threads}
        if memory_limit:
            config["memory_limit"] = memory_limit
        self._con = duckdb.connect(config=config)
        self._con.execute("SET TimeZone = 'UTC'")
        # Long queries would draw it over whatever a command prints.
        self._con.execute("SET enable_progress_bar = false")
        self._tables = 0

    def close(self) -> None:
        """Give back memory and temporary files."""
        self._con.close()

    def describe(self, data: Any, what: str) -> dict[str, str]:
        with self._readable(data, what) as relation:
            rows = self._con.execute(f"DESCRIBE SELECT * FROM {relation}").fetchall()
            return {row[0]: row[1] for row in rows}

    def table(self, data: Any, what: str, *, timezone: str | None = None) -> pa.Table:
        naive = (
            []
            if timezone is None
            else [n for n, k in self.describe(data, what).items() if kind_of(k) == "naive"]
        )
        if isinstance(data, pa.Table) and not naive:
            return data
        parts = [f"{naive_sql(name, timezone)} AS {quoted(name)}" for name in naive]
        replaced = f" REPLACE ({', '.join(parts)})" if parts else ""
        with self._readable(data, what) as relation:
            return self._con.sql(f"SELECT *{replaced} FROM {relation}").to_arrow_table()

    @contextmanager
    def _readable(self, data: Any, what: str) -> Generator[str]:
        """Give the text to select from; errors of reading name what was read."""
        if isinstance(data, pa.Table):
            self._tables += 1
            name = f"arrow_{self._tables}"
            self._con.register(name, data)
            try:
                yield name
            finally:
                self._con.unregister(name)
            return
        text = str(data)
        try:
            yield self._relation(text, what)
        except duckdb.Error as error:
            raise DataError(
                f"The data of {what} cannot be read.",
                where=text[:200],
                found=str(error).splitlines()[0],
                do="check the path or the query.",
            ) from error

    def _relation(self, text: str, what: str) -> str:
        if text.split(maxsplit=1)[:1] and text.split(maxsplit=1)[0].upper() in {"SELECT", "FROM", "WITH"}:
            return f"({text})"
        path = str(self._folder / text)
        if not any(sign in path for sign in "*?[") and not Path(path).exists():
            raise DataError(
                f"The file of {what} does not exist.",
                where=path,
                expected="a Parquet or CSV file, a glob, or a DuckDB query",
                do="correct the path; relative paths start from the world file's folder.",
            )
        if path.removesuffix(".gz").endswith((".csv", ".tsv")):
            return f"read_csv({literal(path)}, sample_size = -1)"
        return f"read_parquet({literal(path)})"

    def aggregates(
        self,
        groupings: Sequence[Grouping],
        schemas: Mapping[str, Schema],
        asked: Asked,
        *,
        rows: Mapping[str, Rows],
        world: World,
    ) -> dict[str, pa.Array]:
        result: dict[str, pa.Array] = {}
        for grouping in groupings:
            content = grouping.source.content
            result.update(
                self._aggregate(
                    grouping, schemas[content], asked, rows.get(content, Rows(grouping.source.data)), world
                )
            )
        return result

    def _aggregate(
        self, grouping: Grouping, schema: Schema, asked: Asked, rows: Rows, world: World
    ) -> dict[str, pa.Array]:
        with Threads(self._threads) as run:
            codes, entities = self._entities(grouping, schema, asked)
            families = [item.family(schema) for item in grouping.inputs]
            ordered = any(AGGREGATIONS[read.operation].ordered for read in grouping.reads)
            with self._prepared(grouping, schema, rows, fact_words=True) as prepared:
                batches = self._batches(grouping, schema, prepared, ordered)
                sorted_, _ = sorted_rows(batches, families, entities + 1, world=world, run=run)
            self._con.execute("DROP TABLE IF EXISTS entities")
            # One more entity, without rows, for moments whose keys no row has or one of whose keys is null.
            order = np.lexsort((asked.at, asked.as_of, codes))
            moment_starts = np.searchsorted(codes[order], np.arange(entities + 2))
            back = np.empty_like(order)
            back[order] = np.arange(order.shape[0])
            return read_windows(
                grouping.reads,
                sorted_,
                moment_starts,
                asked.as_of[order],
                asked.at[order],
                places=back,
                run=run,
            )

    def _entities(self, grouping: Grouping, schema: Schema, asked: Asked) -> tuple[NDArray[np.int64], int]:
        """Number the entities asked about in a table `entities`; give each moment's number and how many there are, which is the number where a key is null."""
        names = ", ".join(_key_names(grouping))
        kinds = {"integer": "BIGINT", "text": "VARCHAR", "boolean": "BOOLEAN", "instant": "BIGINT"}
        keys = ", ".join(
            f"{f'epoch_us({quoted(key)})' if kind_of(schema[key]) == 'instant' else quoted(key)}::{kinds[kind_of(schema[key])]} AS key_{i}"
            for i, key in enumerate(grouping.keys)
        )
        number = pa.array(np.arange(asked.at.shape[0]))
        asked_keys = asked.keys.select(list(grouping.keys)).append_column("__moment", number)
        self._con.register("asked_keys", asked_keys)
        self._con.execute(f"CREATE OR REPLACE TEMP TABLE asked AS SELECT __moment, {keys} FROM asked_keys")
        self._con.unregister("asked_keys")
        present = " AND ".join(f"{key} IS NOT NULL" for key in _key_names(grouping))
        self._number(f"SELECT DISTINCT {names} FROM asked WHERE {present}", names)
        found = self._con.execute(
            f"SELECT __moment, entity FROM asked JOIN entities USING ({names})"
        ).fetchnumpy()
        count = self._con.execute("SELECT count(*) FROM entities").fetchall()[0][0]
        self._con.execute("DROP TABLE asked")
        codes = np.full(asked.at.shape[0], count, np.int64)
        codes[np.asarray(found["__moment"])] = np.asarray(found["entity"])
        return codes, count

    def _number(self, keys: str, names: str) -> None:
        self._con.execute(
            f"CREATE OR REPLACE TEMP TABLE entities AS SELECT {names}, row_number() OVER () - 1 AS entity FROM ({keys})"
        )

    def _batches(
        self, grouping: Grouping, schema: Schema, prepared: str, ordered: bool
    ) -> Iterator[pa.RecordBatch]:
        """Give prepared rows with the number of their entity, in any order, as `sorted_rows` takes them."""
        source, names = grouping.source, ", ".join(_key_names(grouping))
        inputs = [f"input_{i}" for i in range(len(grouping.inputs))]
        columns = ["event_time", "available_at", *inputs]
        if source.id is None:
            joined = f"({prepared}) JOIN entities USING ({names})"
            entity = "entity"
        else:
            # A version that belongs to nobody asked about still supersedes one that does.
            joined = f"({prepared}) LEFT JOIN entities USING ({names})"
            entity = "coalesce(entity, -1) AS entity"
            columns += ["version", "deleted", "fact_low"] + (
                ["fact_high"] if fact_words_sql(source, schema)[1] else []
            )
        if source.id is not None or ordered:
            columns.append("tie")
        reader = self._con.sql(f"SELECT {entity}, {', '.join(columns)} FROM {joined}").to_arrow_reader(
            _BATCH_ROWS
        )
        yield pa.RecordBatch.from_pylist([], schema=reader.schema)
        yield from reader

    def sorted_rows(
        self, grouping: Grouping, schema: Schema, rows: Rows, world: World, *, entities: bool = False
    ) -> pa.Table:
        """Give a grouping's row versions sorted by (key, event time, available time, version, tie), with `superseded_at`, as a table.

        Args:
            grouping, schema, rows, world: as in `aggregates`.
            entities: keep only those of the table `entities`.

        Returns:
            key_*, fact, event_time, available_at, superseded_at, version, tie, input_*.
        """
        names = ", ".join(_key_names(grouping))
        present = " AND ".join(f"{key} IS NOT NULL" for key in _key_names(grouping))
        with (
            self._prepared(grouping, schema, rows, fact_words=True) as prepared,
            Threads(self._threads) as run,
        ):
            if not entities:
                self._number(f"SELECT DISTINCT {names} FROM ({prepared}) WHERE {present} ORDER BY ALL", names)
            count = self._con.execute("SELECT count(*) FROM entities").fetchall()[0][0]
            table = self._con.sql(
                f"SELECT *, coalesce(entity, -1) AS entity_number FROM ({prepared}) LEFT JOIN entities USING ({names})"
            ).to_arrow_table()
        self._con.execute("DROP TABLE IF EXISTS entities")
        inputs = [f"input_{i}" for i in range(len(grouping.inputs))]
        taken = ["event_time", "available_at", "tie", "version"]
        if grouping.source.id is not None:
            taken += [n for n in ("deleted", "fact_low", "fact_high") if n in table.column_names]
        given = table.select([*taken, "entity_number"]).rename_columns([*taken, "entity"])
        empty = pa.RecordBatch.from_pylist([], schema=given.schema)
        with Threads(self._threads) as run:
            kept, order = sorted_rows([empty, *given.to_batches()], [], count, world=world, run=run)
        result = table.select([*_key_names(grouping), "fact", "version", "tie", *inputs]).take(
            pa.array(order)
        )
        ends = kept.superseded if kept.superseded.shape[0] else np.full(order.shape[0], NEVER)
        for name, values in (
            ("event_time", kept.event),
            ("available_at", kept.available),
            ("superseded_at", ends),
        ):
            result = result.append_column(name, pa.array(values))
        return result

    def event_json(
        self, source: Source, schema: Schema, start: int, end: int
    ) -> tuple[NDArray[np.int64], list[str]]:
        """Give a source's rows that became readable in [start, end), in that order: when, and each as a JSON object for the events route."""
        parts = []
        for name, kind in schema.items():
            column = quoted(name)
            if kind_of(kind) == "instant":
                column = f"strftime({column} AT TIME ZONE 'UTC', '%Y-%m-%dT%H:%M:%S.%fZ')"
            elif kind_of(kind) == "naive":
                column = f"strftime({column}, '%Y-%m-%d{'' if kind == 'DATE' else 'T%H:%M:%S.%f'}')"
            parts.append(f"{literal(name)}, {column}")
        with self._readable(source.data, f"source {source.name!r}") as relation:
            inner = f"SELECT *, {instant_sql(source.event_time, schema[source.event_time], source.timezone)} AS __event_us FROM {relation}"
            table = self._con.sql(
                f"SELECT {available_sql(source, schema)} AS available, json_object({', '.join(parts)})::VARCHAR AS event FROM ({inner}) "
                f"WHERE available >= {start} AND available < {end} ORDER BY available, event"
            ).to_arrow_table()
        return table["available"].to_numpy(), table["event"].to_pylist()

    def heads(self, grouping: Grouping, schema: Schema, rows: Rows) -> pa.Table:
        """Give the greatest readable version of every fact of a source with an id: fact, version, available_at, tie, deleted, event_time, key_*."""
        keys = "".join(f", key_{i}" for i in range(len(grouping.keys)))
        greatest = ", ".join(f"{column} DESC" for column in SORTED_BY.split(", "))
        with self._prepared(grouping, schema, rows) as prepared:
            return self._con.sql(
                f"SELECT fact, version, available_at, tie, deleted, event_time{keys} FROM ({prepared}) WHERE fact IS NOT NULL AND available_at IS NOT NULL "
                f"QUALIFY row_number() OVER (PARTITION BY fact ORDER BY {greatest}) = 1"
            ).to_arrow_table()

    def entity_rows(
        self, grouping: Grouping, schema: Schema, keys: pa.Table, rows: Rows
    ) -> list[dict[str, Any]]:
        """Give all row versions of one entity as plain rows; `keys` has one row."""
        nowhen = np.zeros(1, np.int64)
        self._entities(grouping, schema, Asked(keys, nowhen, nowhen))
        return self.sorted_rows(grouping, schema, rows, "as_of", entities=True).to_pylist()

    def fingerprint(
        self, grouping: Grouping, schema: Schema, cutover: int | None
    ) -> tuple[int, int, str, str]:
        """Give (rows, facts, sum of contents, sum of contents with available times) of the rows readable before the cutover, whatever their order."""
        with self._prepared(grouping, schema, Rows(grouping.source.data, cutover)) as prepared:
            row = self._con.execute(
                "SELECT count(*), count(DISTINCT fact), coalesce(sum(tie::HUGEINT), 0)::VARCHAR, coalesce(sum(hash(tie, available_at)::HUGEINT), 0)::VARCHAR "
                f"FROM ({prepared}) WHERE available_at IS NOT NULL"
            ).fetchall()[0]
        return int(row[0]), int(row[1]), row[2], row[3]

    @contextmanager
    def _prepared(
        self, grouping: Grouping, schema: Schema, rows: Rows, *, fact_words: bool = False
    ) -> Generator[str]:
        """Give the query of a grouping's prepared rows: the files', up to the cutover, and the event log's."""
        source = grouping.source
        with self._readable(rows.data, f"source {source.name!r}") as relation:
            about = (source, schema, grouping.keys, grouping.inputs)
            prepared = f"SELECT * FROM ({prepared_sql(*about, relation, fact_words=fact_words)})"
            if rows.cutover is not None:
                prepared += f" WHERE available_at < {rows.cutover}"
            if rows.log is None:
                yield prepared
                return
            with self._readable(rows.log, f"the event log of source {source.name!r}") as logged:
                yield f"{prepared} UNION ALL {prepared_sql(*about, logged, stamped=True, fact_words=fact_words)}"


def input_columns(grouping: Grouping, schema: Schema, table: pa.Table) -> list[InputColumn]:
    """Give a grouping's inputs as the kernel takes them, from columns input_0.. of prepared rows."""
    result: list[InputColumn] = []
    for number, item in enumerate(grouping.inputs):
        family = item.family(schema)
        column = table[f"input_{number}"].combine_chunks()
        result.append(input_column(family, column))
    return result


def _key_names(grouping: Grouping) -> list[str]:
    return [f"key_{i}" for i in range(len(grouping.keys))]
