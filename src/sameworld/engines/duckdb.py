"""One machine: DuckDB reads, evaluates row expressions and joins entity numbers; the order of rows and the kernel do the rest."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sameworld.asof.aggregations import NEVER
from sameworld.asof.columns import InputColumn, input_column
from sameworld.asof.parts import Scratch
from sameworld.asof.plan import Grouping, Input
from sameworld.asof.prepared import Reading, World, gathered, lifetimes, sorted_rows, with_empty
from sameworld.asof.rows import (
    available_sql,
    instant_sql,
    literal,
    naive_sql,
    prepared_sql,
    quoted,
)
from sameworld.asof.schema import Schema, kind_of
from sameworld.asof.threads import Threads
from sameworld.asof.versions import SORTED_BY, superseded_at
from sameworld.definitions.source import Source
from sameworld.engines.answer import (
    BATCH_ROWS,
    answer,
    asked_table,
    codes_of,
    has_keys,
    key_names,
    number_entities,
    numbered_batches,
)
from sameworld.engines.cache import Cache, fingerprint_of_files
from sameworld.engines.interface import Asked, Change, Rows
from sameworld.engines.kept import Kept
from sameworld.errors import DataError


def _silent(_: str) -> None:
    """Say nothing."""


class DuckDBEngine:
    """The engine of one machine.

    Args:
        folder: what relative paths in definitions start from.
        threads: how many cores to use; all by default.
        memory_limit: DuckDB's own, such as "4GB"; it spills to disk beyond it.
        cache: where sorted sources and finished columns are kept; without it nothing is.
        say: told what is being done.
    """

    def __init__(
        self,
        folder: Path | None = None,
        *,
        threads: int | None = None,
        memory_limit: str | None = None,
        cache: Path | None = None,
        say: Callable[[str], None] = _silent,
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
        self._say = say
        self._cache = None if cache is None else Cache(cache)
        self._kept = None if self._cache is None else Kept(self._cache, self, self._threads, say)

    @property
    def folder(self) -> Path:
        return self._folder

    @property
    def connection(self) -> duckdb.DuckDBPyConnection:
        """What its queries run on."""
        return self._con

    def close(self) -> None:
        """Give back memory."""
        self._con.close()

    def describe(self, data: Any, what: str) -> dict[str, str]:
        with self.readable(data, what) as relation:
            rows = self._con.execute(f"DESCRIBE SELECT * FROM {relation}").fetchall()
            return {row[0]: row[1] for row in rows}

    def table(self, data: Any, what: str, *, timezone: str | None = None) -> pa.Table:
        kinds = self.describe(data, what) if timezone is not None else {}
        replaced = on_clocks(kinds, timezone)
        if isinstance(data, pa.Table) and not replaced:
            return data
        with self.readable(data, what) as relation:
            return self._con.sql(f"SELECT *{replaced} FROM {relation}").to_arrow_table()

    def batches(self, data: Any, what: str, *, rows: int, timezone: str | None = None) -> Iterator[pa.Table]:
        if isinstance(data, pa.Table):
            whole = self.table(data, what, timezone=timezone)
            yield from (whole.slice(first, rows) for first in range(0, max(whole.num_rows, 1), rows))
            return
        kinds = self.describe(data, what) if timezone is not None else {}
        replaced = on_clocks(kinds, timezone)
        # A connection of its own: the next query of one ends the stream of the query before.
        with self.readable(data, what) as relation, self._con.cursor() as con:
            con.execute("SET TimeZone = 'UTC'")
            reader = con.sql(f"SELECT *{replaced} FROM {relation}").to_arrow_reader(min(rows, BATCH_ROWS))
            waiting = reader.schema.empty_table()
            empty = True
            for batch in _in_duckdb_s_words(reader):
                waiting = pa.concat_tables([waiting, pa.Table.from_batches([batch])])
                while waiting.num_rows >= rows:
                    empty = False
                    yield waiting.slice(0, rows)
                    waiting = waiting.slice(rows)
            if empty or waiting.num_rows:
                yield waiting

    def sums(self, data: Any, what: str) -> tuple[int, str]:
        with self.readable(data, what) as relation:
            return self._con.execute(sums_sql(relation)).fetchall()[0]

    def digests(self, files: Sequence[Path]) -> list[tuple[int, str]]:
        found = fingerprint_of_files(files, self._cache, self._threads)
        return [(size, digest) for _, size, digest in found]

    def files(self, data: Any) -> list[Path] | None:
        if isinstance(data, pa.Table) or _is_query(str(data)):
            return None
        path = self._pattern(str(data))
        found = self._con.execute("SELECT file FROM glob(?) ORDER BY file", [path]).fetchall()
        return [Path(name) for (name,) in found] or [Path(path)]

    @contextmanager
    def readable(self, data: Any, what: str) -> Generator[str]:
        """Give the text to select from on `connection`; errors of reading name what was read."""
        if isinstance(data, pa.Table):
            self._tables += 1
            name = f"arrow_{self._tables}"
            self._con.register(name, data)
            try:
                yield name
            finally:
                self._con.unregister(name)
            return
        if not isinstance(data, str | Path | tuple):
            raise DataError(
                f"This engine cannot read the data of {what}.",
                expected="a path, a glob, a DuckDB query or an Arrow table",
                found=f"{type(data).__module__}.{type(data).__qualname__}",
                do="make an Arrow table of it, such as pyarrow.Table.from_pandas(frame), or use the engine whose table it is, such as engine='spark'.",
            )
        text = ", ".join(str(path) for path in data) if isinstance(data, tuple) else str(data)
        try:
            yield _relation_of(data) if isinstance(data, tuple) else self._relation(text, what)
        except duckdb.Error as error:
            raise DataError(
                f"The data of {what} cannot be read.",
                where=text[:200],
                found=str(error).splitlines()[0],
                do="check the path or the query.",
            ) from error

    def _pattern(self, text: str) -> str:
        """Give the pattern of a path or glob; that of a folder is its Parquet files, however deep."""
        path = str(Path(exactly(self._folder)) / text)
        return f"{path}/**/*.parquet" if (self._folder / text).is_dir() else path

    def _relation(self, text: str, what: str) -> str:
        if _is_query(text):
            return f"({text}\n)"  # it may end in a comment
        path = self._pattern(text)
        if not any(sign in path for sign in "*?[") and not Path(path).exists():
            raise DataError(
                f"The file of {what} does not exist.",
                where=path,
                expected="a Parquet or CSV file, a glob, or a DuckDB query",
                do="correct the path; relative paths start from the world file's folder.",
            )
        if is_csv(path):
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
            schema = schemas[grouping.source.content]
            where = rows.get(grouping.source.content, Rows(grouping.source.data))
            files = self.files(where.data) if where.log is None else None
            if self._kept is not None and files:
                try:
                    result.update(self._kept.aggregates(grouping, schema, asked, where, world, files))
                    continue
                # Of Arrow's errors, too, what was kept is the likelier cause; one of the source's own comes again without it.
                except (OSError, pa.ArrowException) as error:
                    self._kept.forget()
                    self._say(f"going on without the cache: {error}")
            result.update(self._aggregate(grouping, schema, asked, where, world))
        return result

    @property
    def changes(self) -> list[Change]:
        """The values that were kept from an earlier run and are others now, since rows came late."""
        return [] if self._kept is None else self._kept.changes

    def _aggregate(
        self, grouping: Grouping, schema: Schema, asked: Asked, rows: Rows, world: World
    ) -> dict[str, pa.Array]:
        """Sort only the rows of the entities asked about, and keep nothing."""
        keys = asked_table(self._con, grouping, schema, asked.keys)
        source = self._prepared(grouping, schema, rows, fact_words=True)
        with Threads(self._threads) as run, Scratch() as scratch, keys, source as prepared:
            about = (self._con, grouping, schema, prepared, asked.as_of, asked.at)
            return answer(*about, world=world, run=run, scratch=scratch, rows=self._most_rows(rows.data))

    # what `Kept` needs

    def count(self, files: Sequence[Path]) -> int:
        return self._most_rows(tuple(files))

    def total(self, files: Sequence[Path]) -> int:
        return int(self._con.execute(f"SELECT count(*) FROM {_relation_of(files)}").fetchall()[0][0])

    def number_entities(self, grouping: Grouping, schema: Schema, rows: Rows, known: Path | None) -> pa.Table:
        names = ", ".join(key_names(grouping))
        present = has_keys(grouping)
        if known is not None:
            self._con.register("known_entities", pq.read_table(known))
        with self._prepared(grouping, schema, rows) as prepared:
            different = f"SELECT DISTINCT {names} FROM ({prepared}) WHERE {present}"
            if known is None:
                number_entities(self._con, different, names)
            else:
                before = "known_entities"
                self._con.execute(
                    f"CREATE OR REPLACE TEMP TABLE entities AS SELECT {names}, entity FROM {before} UNION ALL "
                    f"SELECT {names}, (SELECT count(*) FROM {before}) + row_number() OVER () - 1 FROM ({different}) ANTI JOIN {before} USING ({names})"
                )
            if known is not None:
                self._con.unregister("known_entities")
        return self._con.sql("SELECT * FROM entities ORDER BY entity").to_arrow_table()

    def prepared_batches(self, grouping: Grouping, schema: Schema, rows: Rows) -> Iterator[pa.RecordBatch]:
        with self._prepared(grouping, schema, rows, fact_words=True, numbered=True) as prepared:
            yield from numbered_batches(self._con, grouping, schema, prepared, ordered=True, numbered=True)
        self._con.execute("DROP TABLE IF EXISTS entities")

    def input_batches(
        self, grouping: Grouping, schema: Schema, files: Sequence[Path], inputs: Sequence[Input]
    ) -> Iterator[pa.RecordBatch]:
        wanted = Grouping(grouping.source, grouping.keys, tuple(inputs), ())
        names = ", ".join(f"input_{i}" for i in range(len(inputs)))
        # Without the cutover: rows are known by their number among all.
        with self._prepared(wanted, schema, Rows(tuple(files))) as prepared:
            reader = self._con.sql(f"SELECT {names} FROM ({prepared})").to_arrow_reader(BATCH_ROWS)
            yield pa.RecordBatch.from_pylist([], schema=reader.schema)
            yield from reader

    def codes(self, entities: Path, grouping: Grouping, schema: Schema, asked: Asked) -> NDArray[np.int64]:
        # Read by Arrow, whose error is told apart from one of the source's data: whoever trims the cache may have taken it away.
        try:
            known = pq.read_table(entities)
        except pa.ArrowException as error:
            raise OSError(f"{entities} cannot be read: {error}") from error
        with asked_table(self._con, grouping, schema, asked.keys):
            self._con.register("known_entities", known)
            codes = codes_of(self._con, grouping, "known_entities", asked.at.shape[0])
            self._con.unregister("known_entities")
            return codes

    def counts(self, files: Sequence[Path]) -> list[int]:
        """Give the number of rows of each Parquet file."""
        query = f"SELECT file_name, num_rows FROM parquet_file_metadata({_list(files)})"
        known = dict(self._con.execute(query).fetchall())
        return [int(known[str(path)]) for path in files]

    def _most_rows(self, data: Any) -> int:
        """Give how many rows there are at most, where that costs nothing to know; else 0."""
        if isinstance(data, pa.Table):
            return data.num_rows
        files = data if isinstance(data, tuple) else self.files(data)
        if not files or any(is_csv(str(path)) for path in files):
            return 0
        query = f"SELECT coalesce(sum(num_rows), 0) FROM parquet_file_metadata({_list(files)})"
        return int(self._con.execute(query).fetchall()[0][0])

    def sorted_rows(self, grouping: Grouping, schema: Schema, rows: Rows, world: World) -> pa.Table:
        """Give a grouping's row versions sorted by (key, event time, available time, version, tie), with `superseded_at`, as a table.

        Args:
            grouping, schema, rows, world: as in `aggregates`.

        Returns:
            key_*, fact, event_time, available_at, superseded_at, version, tie, input_*.
        """
        names = ", ".join(key_names(grouping))
        present = has_keys(grouping)
        with self._prepared(grouping, schema, rows, fact_words=True) as prepared:
            count = number_entities(
                self._con, f"SELECT DISTINCT {names} FROM ({prepared}) WHERE {present} ORDER BY ALL", names
            )
            table = self._con.sql(
                f"SELECT *, coalesce(entity, -1) AS number FROM ({prepared}) LEFT JOIN entities USING ({names})"
            ).to_arrow_table()
        self._con.execute("DROP TABLE IF EXISTS entities")
        order = ["event_time", "available_at", "tie"]
        if grouping.source.id is not None:
            order += [
                name for name in ("version", "deleted", "fact_low", "fact_high") if name in table.column_names
            ]
        given = table.select([*order, "number"]).rename_columns([*order, "entity"])
        with Threads(self._threads) as run:
            made = sorted_rows(
                with_empty(given),
                [],
                count,
                world=world,
                within=grouping.source.corrections_within_microseconds,
                run=run,
                rows=table.num_rows,
            )
        inputs = [f"input_{i}" for i in range(len(grouping.inputs))]
        kept = made.rows
        result = table.select([*key_names(grouping), "fact", "version", "tie", *inputs]).take(
            pa.array(made.row)
        )
        ends = kept.superseded if kept.superseded.shape[0] else np.full(made.row.shape[0], NEVER)
        times = {"event_time": kept.event, "available_at": kept.available, "superseded_at": ends}
        for name, values in times.items():
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
            elif kind_of(kind) == "decimal":
                column = f"{column}::VARCHAR"  # as a number, 0.5 would be written .5
            parts.append(f"{literal(name)}, {column}")
        with self.readable(source.data, f"source {source.name!r}") as relation:
            inner = f"SELECT *, {instant_sql(source.event_time, schema[source.event_time], source.timezone)} AS __event_us FROM {relation}"
            table = self._con.sql(
                f"SELECT {available_sql(source, schema)} AS available, json_object({', '.join(parts)})::VARCHAR AS event FROM ({inner}) "
                f"WHERE available >= {start} AND available < {end} ORDER BY available, event"
            ).to_arrow_table()
        return table["available"].to_numpy(), table["event"].to_pylist()

    def heads(self, grouping: Grouping, schema: Schema, rows: Rows) -> pa.Table:
        """Give the greatest version that counts of every fact of a source with an id: fact, version, available_at, tie, deleted, event_time, first_available, key_*."""
        with self._prepared(grouping, schema, rows, fact_words=True) as prepared:
            table = self._con.sql(f"SELECT *, -1 AS entity FROM ({prepared})").to_arrow_table()
        reading = Reading([], "as_of", grouping.source.corrections_within_microseconds)
        with Threads(self._threads) as run:
            lives = lifetimes(gathered(map(reading.words, with_empty(table))), reading, run)
        # Nothing supersedes the greatest version, and only it.
        kept = (lives.counted < NEVER) & (lives.superseded == NEVER) & table["fact"].is_valid().to_numpy()
        columns = ["fact", "version", "available_at", "tie", "deleted", "event_time", *key_names(grouping)]
        first = pa.array(lives.first)
        return table.select(columns).append_column("first_available", first).filter(pa.array(kept))

    def entity_rows(
        self, grouping: Grouping, schema: Schema, keys: pa.Table, rows: Rows
    ) -> list[dict[str, Any]]:
        """Give the row versions of one entity that ever live, as plain rows in the kernel's order; `keys` has one row."""
        lived = [
            row
            for row in self.entity_versions(grouping, schema, keys, rows)
            if row["own"]
            and row["available_at"] < row["superseded_at"]
            and not row["deleted"]
            and row["event_time"] is not None
        ]
        order = ("event_time", "available_at", "version", "tie")
        return sorted(lived, key=lambda row: tuple(row[name] for name in order))

    def entity_versions(
        self, grouping: Grouping, schema: Schema, keys: pa.Table, rows: Rows
    ) -> list[dict[str, Any]]:
        """Give every version there ever was of one entity's rows, each fact's in their order; `keys` has one row.

        Versions that never live are among them, and those of the same facts that belong to another entity, since they supersede.

        Returns:
            own (whether the version is the entity's), event_time, came_at (its available time; NEVER where it is null), available_at (NEVER also where it
            came too late to count), superseded_at, fact, version, deleted, tie, input_*.
        """
        self._have_entity(grouping, schema, keys)
        names = ", ".join(key_names(grouping))
        inputs = "".join(f", input_{i}" for i in range(len(grouping.inputs)))
        kept = "entity IS NOT NULL"
        with self._prepared(grouping, schema, rows) as prepared:
            if grouping.source.id is not None:
                self._con.execute(
                    f"CREATE OR REPLACE TEMP TABLE own_facts AS SELECT DISTINCT fact FROM ({prepared}) JOIN entities USING ({names}) WHERE fact IS NOT NULL"
                )
                kept += " OR fact IN (SELECT fact FROM own_facts)"
            # Versions of a fact supersede each other wherever they belong, and no other fact's, so these facts are enough.
            table = self._con.sql(
                f"SELECT entity IS NOT NULL AS own, event_time, coalesce(available_at, {NEVER}) AS available_at, fact, version, deleted, tie{inputs} "
                f"FROM ({prepared}) LEFT JOIN entities USING ({names}) WHERE {kept} ORDER BY fact, {SORTED_BY}"
            ).to_arrow_table()
        for name in ("entities", "own_facts"):
            self._con.execute(f"DROP TABLE IF EXISTS {name}")
        result = table.to_pylist()
        facts = [row["fact"] for row in result]
        same = [
            place > 0 and fact is not None and fact == facts[place - 1] for place, fact in enumerate(facts)
        ]
        within = grouping.source.corrections_within_microseconds
        counted, ends, _ = superseded_at(
            np.array(same, np.bool_),
            table["available_at"].to_numpy().astype(np.int64),
            NEVER if within is None else within,
        )
        return [
            {**row, "came_at": row["available_at"], "available_at": available, "superseded_at": end}
            for row, available, end in zip(result, counted.tolist(), ends.tolist(), strict=True)
        ]

    def _have_entity(self, grouping: Grouping, schema: Schema, keys: pa.Table) -> None:
        """Have the one entity of `keys` in the table `entities`."""
        names = ", ".join(key_names(grouping))
        with asked_table(self._con, grouping, schema, keys):
            number_entities(self._con, f"SELECT DISTINCT {names} FROM asked", names)

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
        self,
        grouping: Grouping,
        schema: Schema,
        rows: Rows,
        *,
        fact_words: bool = False,
        numbered: bool = False,
    ) -> Generator[str]:
        """Give the query of a grouping's prepared rows: the files', up to the cutover, and the event log's."""
        source = grouping.source
        with self.readable(rows.data, f"source {source.name!r}") as relation:
            about = (source, schema, grouping.keys, grouping.inputs)
            prepared = (
                f"SELECT * FROM ({prepared_sql(*about, relation, fact_words=fact_words, numbered=numbered)})"
            )
            if rows.cutover is not None:
                prepared += f" WHERE available_at < {rows.cutover}"
            if rows.log is None:
                yield prepared
                return
            with self.readable(rows.log, f"the event log of source {source.name!r}") as logged:
                yield f"{prepared} UNION ALL {prepared_sql(*about, logged, stamped=True, fact_words=fact_words)}"


def input_columns(grouping: Grouping, schema: Schema, table: pa.Table) -> list[InputColumn]:
    """Give a grouping's inputs as the kernel takes them, from columns input_0.. of prepared rows."""
    result: list[InputColumn] = []
    for number, item in enumerate(grouping.inputs):
        family = item.family(schema)
        column = table[f"input_{number}"].combine_chunks()
        result.append(input_column(family, column))
    return result


def digest_of(file: Path) -> tuple[int, str]:
    """Give (bytes, digest of the contents) of a file."""
    ((_, size, digest),) = fingerprint_of_files([file])
    return size, digest


def on_clocks(kinds: Schema, timezone: str | None) -> str:
    """Give what comes after `SELECT *` so that naive timestamps become instants on the clocks of `timezone`; None leaves them as they are."""
    naive = [] if timezone is None else [name for name, kind in kinds.items() if kind_of(kind) == "naive"]
    parts = [f"{naive_sql(name, timezone)} AS {quoted(name)}" for name in naive]
    return f" REPLACE ({', '.join(parts)})" if parts else ""


def sums_sql(relation: str) -> str:
    """Give the query of what is in a relation: how many rows, and the sum of the hash of each."""
    # `row_of_data` stands for the whole row, as long as no column has that name.
    rows = f"(SELECT * FROM {relation}\n) AS row_of_data"
    return f"SELECT count(*)::BIGINT, sum(hash(row_of_data)::HUGEINT)::VARCHAR FROM {rows}"


def _in_duckdb_s_words(reader: pa.RecordBatchReader) -> Iterator[pa.RecordBatch]:
    """Give a reader's batches; what goes wrong inside DuckDB meanwhile is DuckDB's error again."""
    try:
        yield from reader
    except (pa.ArrowException, OSError) as error:
        raise duckdb.Error(str(error)) from error


def _is_query(text: str) -> bool:
    bare = re.sub(r"\A(\s|\(|--.*|/\*(?s:.*?)\*/)*", "", text)
    return bare.split(maxsplit=1)[:1] != [] and bare.split(maxsplit=1)[0].upper() in {
        "SELECT",
        "FROM",
        "WITH",
    }


def is_csv(path: str) -> bool:
    return path.removesuffix(".gz").endswith((".csv", ".tsv"))


def _list(files: Iterable[Path]) -> str:
    return f"[{', '.join(literal(exactly(path)) for path in files)}]"


def exactly(path: Path) -> str:
    """A file's name as a pattern that only it matches."""
    return re.sub(r"[\[*?]", lambda sign: f"[{sign[0]}]", str(path))


def _relation_of(files: Sequence[Path]) -> str:
    """Several files, in this order."""
    if is_csv(str(files[0])):
        return f"read_csv({_list(files)}, sample_size = -1)"
    return f"read_parquet({_list(files)})"
