"""One machine: DuckDB reads, evaluates row expressions, joins entity numbers and sorts (spilling to disk); the kernel does the rest."""

from __future__ import annotations

import os
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sameworld.asof.aggregations import NEVER
from sameworld.asof.plan import Grouping
from sameworld.asof.read import InputColumn, SortedRows, read_windows
from sameworld.asof.rows import available_sql, instant_sql, literal, naive_sql, prepared_sql, quoted
from sameworld.asof.schema import Schema, kind_of
from sameworld.asof.versions import SORTED_BY, superseded_at
from sameworld.definitions.source import Source
from sameworld.engines.interface import Asked, Rows, World
from sameworld.errors import DataError


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
        codes = self._entities(grouping, schema, asked)
        table = self.sorted_rows(grouping, schema, rows, world, entities="entities")
        self._con.execute("DROP TABLE IF EXISTS entities")
        entity = table["entity"].to_numpy()
        count = int(codes.max(initial=-1)) + 1
        # One more entity, without rows, for moments whose keys no row has or one of whose keys is null.
        codes = np.where(codes < 0, count, codes)
        order = np.lexsort((asked.as_of, codes))
        starts = np.searchsorted(entity, np.arange(count + 2))
        moment_starts = np.searchsorted(codes[order], np.arange(count + 2))
        sorted_rows = SortedRows(
            starts,
            *(table[name].to_numpy() for name in ("event_time", "available_at", "superseded_at")),
            inputs=input_columns(grouping, schema, table),
        )
        back = np.empty_like(order)
        back[order] = np.arange(order.shape[0])
        return read_windows(
            grouping.reads,
            sorted_rows,
            moment_starts,
            asked.as_of[order],
            asked.at[order],
            places=back,
            threads=self._threads,
        )

    def _entities(self, grouping: Grouping, schema: Schema, asked: Asked) -> NDArray[np.int64]:
        """Number the entities asked about in a table `entities`; give each moment's number, -1 where a key is null."""
        names = ", ".join(f"key_{i}" for i in range(len(grouping.keys)))
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
        present = " AND ".join(f"key_{i} IS NOT NULL" for i in range(len(grouping.keys)))
        self._con.execute(
            f"CREATE OR REPLACE TEMP TABLE entities AS SELECT {names}, row_number() OVER () - 1 AS entity FROM (SELECT DISTINCT {names} FROM asked WHERE {present})"
        )
        codes = self._con.execute(
            f"SELECT coalesce(entity, -1)::BIGINT AS entity FROM asked LEFT JOIN entities USING ({names}) ORDER BY __moment"
        ).fetchnumpy()["entity"]
        self._con.execute("DROP TABLE asked")
        return np.asarray(codes, np.int64)

    def sorted_rows(
        self, grouping: Grouping, schema: Schema, rows: Rows, world: World, *, entities: str | None = None
    ) -> pa.Table:
        """Give a grouping's row versions sorted by (entity, event time, available time, version, tie), with `superseded_at`.

        Args:
            grouping, schema, rows, world: as in `aggregates`.
            entities: a table of keys and entity numbers to keep; without it rows keep their keys and are sorted by them.

        Returns:
            event_time, available_at, superseded_at, version, tie, input_*, and entity (or fact and key_*).
        """
        source = grouping.source
        keys = [f"key_{i}" for i in range(len(grouping.keys))]
        inputs = "".join(f", input_{i}" for i in range(len(grouping.inputs)))
        with self._prepared(grouping, schema, rows) as found:
            prepared = found
            if world == "event_time":
                prepared = (
                    f"SELECT * REPLACE (coalesce(available_at, event_time) AS available_at) FROM ({prepared})"
                )
            if source.id is None:
                prepared = f"SELECT *, {NEVER} AS superseded_at FROM ({prepared})"
            else:
                self._supersede(prepared)
                prepared = "SELECT facts.*, superseded_at FROM facts POSITIONAL JOIN superseded"
            if world == "event_time":
                prepared = f"SELECT * REPLACE (event_time AS available_at) FROM ({prepared}) WHERE superseded_at = {NEVER}"
            present = " AND ".join(f"{key} IS NOT NULL" for key in keys)
            kept = f"({prepared}) WHERE available_at < superseded_at AND NOT deleted AND event_time IS NOT NULL AND {present}"
            columns = f"fact, event_time, available_at, superseded_at, version, tie{inputs}"
            if entities:
                query = f"SELECT entity, {columns} FROM (SELECT * FROM {kept}) JOIN {entities} USING ({', '.join(keys)}) ORDER BY entity"
            else:
                query = f"SELECT {', '.join(keys)}, {columns} FROM {kept} ORDER BY {', '.join(keys)}"
            table = self._con.sql(f"{query}, event_time, available_at, version, tie").to_arrow_table()
        for name in ("facts", "superseded"):
            if source.id is not None:
                self._con.execute(f"DROP TABLE IF EXISTS {name}")
        return table

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
        return self.sorted_rows(grouping, schema, rows, "as_of", entities="entities").to_pylist()

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
    def _prepared(self, grouping: Grouping, schema: Schema, rows: Rows) -> Generator[str]:
        """Give the query of a grouping's prepared rows: the files', up to the cutover, and the event log's."""
        source = grouping.source
        with self._readable(rows.data, f"source {source.name!r}") as relation:
            prepared = (
                f"SELECT * FROM ({prepared_sql(source, schema, grouping.keys, grouping.inputs, relation)})"
            )
            if rows.cutover is not None:
                prepared += f" WHERE available_at < {rows.cutover}"
            if rows.log is None:
                yield prepared
                return
            with self._readable(rows.log, f"the event log of source {source.name!r}") as logged:
                yield f"{prepared} UNION ALL {prepared_sql(source, schema, grouping.keys, grouping.inputs, logged, stamped=True)}"

    def _supersede(self, prepared: str) -> None:
        """Make the tables `facts` (rows in the order of their versions) and `superseded` (one column, the same order)."""
        self._con.execute(
            f"CREATE OR REPLACE TEMP TABLE facts AS SELECT * REPLACE (coalesce(available_at, {NEVER}) AS available_at) FROM ({prepared}) "
            f"ORDER BY fact, {SORTED_BY}"
        )
        columns = self._con.execute(
            "SELECT available_at, coalesce(fact = lag(fact) OVER (ORDER BY rowid), false) AS same FROM facts ORDER BY rowid"
        ).fetchnumpy()
        ends = superseded_at(
            np.asarray(columns["same"], np.bool_), np.asarray(columns["available_at"], np.int64)
        )
        self._con.register("ends", pa.table({"superseded_at": ends}))
        self._con.execute("CREATE OR REPLACE TEMP TABLE superseded AS SELECT * FROM ends")
        self._con.unregister("ends")


def input_columns(grouping: Grouping, schema: Schema, table: pa.Table) -> list[InputColumn]:
    """Give a grouping's inputs as the kernel takes them, from columns input_0.. of prepared rows."""
    result: list[InputColumn] = []
    for number, item in enumerate(grouping.inputs):
        family = item.family(schema)
        column = table[f"input_{number}"].combine_chunks()
        result.append(input_column(family, column))
    return result


def input_column(family: str | None, column: pa.Array | pa.ChunkedArray) -> InputColumn:
    """Give one input as the kernel takes it."""
    if family is None:
        return InputColumn(None, None, column.to_numpy(zero_copy_only=False).astype(np.uint8))
    valid = column.is_valid().to_numpy(zero_copy_only=False).astype(np.uint8)
    if family == "text":
        return InputColumn(family, column.to_numpy(zero_copy_only=False), valid)
    filled = column.fill_null(False if family == "boolean" else 0)
    kind = {"float": np.float64, "boolean": np.bool_}.get(family, np.int64)
    return InputColumn(family, filled.to_numpy(zero_copy_only=False).astype(kind, copy=False), valid)
