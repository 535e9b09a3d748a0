"""The online store gives the oracle's bits, whatever was delivered in whatever order, repeated, corrected, killed, rebuilt."""

from __future__ import annotations

import datetime
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import numpy as np
import pyarrow as pa
import pytest
from every_aggregation import (
    CASES,
    COLUMNS,
    INSTANT,
    asked_of_oracle,
    bits,
    calls,
    columns_of,
    plain,
    type_of,
    types,
    values,
)
from histories import one_engine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis_server import RedisServer

import sameworld as sw
from sameworld.asof.aggregations import AGGREGATIONS
from sameworld.asof.plan import aggregates_of, groupings_of, narrowed
from sameworld.asof.rows import prepared_sql
from sameworld.asof.tally import Tallies
from sameworld.definitions.feature import Aggregate
from sameworld.definitions.windows import Window
from sameworld.engines.duckdb import DuckDBEngine
from sameworld.engines.interface import Asked, Rows
from sameworld.errors import AsOfError, DataError, ReplayOrderError, RequestError, StoreError
from sameworld.stores import event_log
from sameworld.stores.events import EventReader
from sameworld.stores.history import served_rows
from sameworld.stores.lmdb import Sizes, start_of
from sameworld.stores.online import OnlineStore, Taken
from sameworld.stores.redis import Shared
from sameworld.stores.tallies import Record, unpack
from sameworld.stores.tallies import made as tallies_of_chunks
from sameworld.testing import oracle

EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
SCHEMA = pa.schema(
    [
        ("k1", pa.string()),
        ("k2", pa.int64()),
        ("k3", pa.bool_()),
        ("k4", INSTANT),
        ("e", INSTANT),
        ("a", INSTANT),
        ("id", pa.string()),
        ("v", pa.int64()),
        ("d", pa.bool_()),
        *types().items(),
    ]
)
INSTANTS = {"k4", "e", "a", *COLUMNS["instant"]}
NAMED: dict[str, dict[str, str]] = {
    "append_only": {},
    "by_arrival": {"id": "id", "deleted": "d"},
    "by_version": {"id": "id", "version": "v", "deleted": "d"},
}
CLOSING = ["closing by_arrival", "closing by_version"]
ON_ONE_HOST = [(versions, "lmdb") for versions in [*NAMED, *CLOSING]]
CONDITION = "x > 0 OR s = 'u'"
LONG = "ж" * 300  # longer than a key of the index may be
ENTITIES: list[tuple[str | None, int | None, bool | None, int | None]] = [
    ("a", 0, True, 1),
    ("a", 1, None, 2),
    ("ü\u2028", 0, False, 1),
    ("", 1, True, None),
    (LONG, 0, False, 2),
    (None, None, True, 1),
    ("nobody", 7, False, 9),
]
FIELDS: dict[str, list[Any]] = {
    name: [entity[i] for entity in ENTITIES] for i, name in enumerate(("k1", "k2", "k3", "k4"))
}

Row = dict[str, Any]


class FakeClock:
    """Says what it is told to say."""

    def __init__(self, time: int = 0) -> None:
        self.time = time

    def now(self) -> int:
        return self.time


def windowed(
    operation: str,
    column: str | None,
    keys: tuple[str, ...],
    *,
    where: bool,
    windows: Sequence[Window],
    given: Mapping[str, Any] = {},
) -> tuple[Any, ...]:
    return (operation, column, keys, where, tuple(windows), given)


def aggregate_of(source: sw.Source, spec: tuple[Any, ...]) -> Aggregate:
    operation, column, keys, where, windows, given = spec
    rows = (source.where(CONDITION) if where else source).by(*keys)
    return getattr(rows, operation)(*([column] if column else []), **given, over=windows)


def holds(row: Row) -> bool:
    return (row["x"] is not None and row["x"] > 0) or row["s"] == "u"


def as_events(rows: Sequence[Row]) -> bytes:
    """The JSON array of rows; nulls are left out."""
    events = [
        {
            name: EPOCH + datetime.timedelta(microseconds=value) if name in INSTANTS else value
            for name, value in row.items()
            if value is not None
        }
        for row in rows
    ]
    return msgspec.json.encode(events)


def ties_of(source: sw.Source, rows: Sequence[Row]) -> list[int]:
    if not rows:
        return []
    engine = one_engine()
    engine._con.register("raw", pa.Table.from_pylist(list(rows), schema=SCHEMA))
    query = prepared_sql(source, schema_of(), (), (), "raw")
    found = engine._con.execute(f"SELECT tie FROM ({query})").fetchnumpy()["tie"].tolist()
    engine._con.unregister("raw")
    return found


_SCHEMA: dict[str, str] = {}


def schema_of() -> dict[str, str]:
    """The source's pinned schema."""
    if not _SCHEMA:
        _SCHEMA.update(one_engine().describe(SCHEMA.empty_table(), "rows"))
    return _SCHEMA


@dataclass
class Told:
    """A row as the oracle is told of it: when it became readable, and its tie."""

    row: Row
    available_at: int | None
    tie: int


def versions_of(told: Sequence[Told], aggregate: Aggregate) -> list[oracle.Version]:
    """What was told, as the oracle takes it for one aggregate."""
    source = aggregate.source
    return [
        oracle.Version(
            key=tuple(one.row[name] for name in aggregate.keys),
            event_time=one.row["e"],
            available_at=one.available_at,
            holds=aggregate.where is None or holds(one.row),
            fact=one.row["id"] if source.id else None,
            version=(one.row["v"] if one.row["v"] is not None else -(2**63)) if source.version else 0,
            deleted=bool(one.row["d"]) and source.deleted is not None,
            tie=one.tie,
            **columns_of(aggregate, one.row),
        )
        for one in told
    ]


def said_by_oracle(
    versions: Sequence[oracle.Version], aggregate: Aggregate, t: int
) -> dict[tuple[str, tuple[Any, ...]], object] | None:
    """Give (column, key) -> bits at a moment; None when a sum does not fit."""
    said: dict[tuple[str, tuple[Any, ...]], object] = {}
    keys = dict.fromkeys(zip(*(FIELDS[name] for name in aggregate.keys), strict=True))
    try:
        for column, window in zip(aggregate.columns, aggregate.windows, strict=True):
            start, end = window.bounds
            for key in keys:
                value = oracle.value_at(
                    versions, aggregate.operation, key, t, start=start, end=end,
                    corrections_within=aggregate.source.corrections_within_microseconds, **asked_of_oracle(aggregate),
                )  # fmt: skip
                said[column, key] = bits(value)
    except AsOfError:
        return None
    return said


def found_in(
    values: Mapping[str, pa.Array], aggregates: Sequence[Aggregate]
) -> dict[tuple[str, tuple[Any, ...]], object]:
    """Give (column, key) -> bits of values of every entity."""
    found: dict[tuple[str, tuple[Any, ...]], object] = {}
    for aggregate in aggregates:
        keys = list(zip(*(FIELDS[name] for name in aggregate.keys), strict=True))
        for column in aggregate.columns:
            assert values[column].type == type_of(aggregate), column
            found.update(zip(((column, key) for key in keys), map(bits, plain(values[column])), strict=True))
    return found


@dataclass
class World:
    """One state folder, the models served from it, and everything that was ever told to it."""

    source: sw.Source
    folder: Path
    replay: bool
    cutover: int
    clock: FakeClock
    chunk_rows: int
    aggregates: list[Aggregate]
    told: list[Told] = field(default_factory=list)
    engine: DuckDBEngine = field(default_factory=one_engine)
    store: OnlineStore | None = None
    redis: str | None = None

    def open(self, aggregates: Sequence[Aggregate] | None = None, *, fill: bool = True) -> OnlineStore:
        """Close the store and open it for some of the aggregates (all by default)."""
        self.close()
        self.aggregates = list(aggregates) if aggregates is not None else self.aggregates
        groupings = groupings_of(aggregates_of(self.aggregates))
        self.store = OnlineStore(
            self.folder,
            groupings,
            {self.source.content: schema_of()},
            durability="process",
            replay=self.replay,
            clock=self.clock,
            # of what lies in several chunks some is read from tallies
            sizes=Sizes(self.chunk_rows, 1 if self.chunk_rows % 2 == 0 else 4, 2),
            shared=Shared(self.folder, self.redis, reading_seconds=5.0, few=1) if self.redis else None,
        )
        if fill:
            self.store.fill(self.engine, cutover=self.cutover)
        return self.store

    def close(self) -> None:
        if self.store is not None:
            self.store.close()
            self.store = None

    def take(self, *deliveries: tuple[str, Sequence[Row]]) -> list[Taken | RequestError]:
        """Commit deliveries as one group."""
        assert self.store is not None
        return self.store.commit(
            [self.store.prepare("rows", key, as_events(rows)) for key, rows in deliveries]
        )

    def read(
        self, t: int | None = None, aggregates: Sequence[Aggregate] | None = None
    ) -> dict[tuple[str, tuple[Any, ...]], object]:
        """Read aggregates (all by default) of every entity through one snapshot; give (column, key) -> bits."""
        assert self.store is not None
        wanted = self.aggregates if aggregates is None else aggregates
        groupings = narrowed(self.store.groupings, wanted)
        with self.store.snapshot(lambda: [(groupings, FIELDS)], t) as snapshot:
            at = snapshot.moment() if t is None else t
            values = snapshot.aggregates(groupings, FIELDS, at)
        return found_in(values, wanted)

    def read_in_batch(
        self, t: int, aggregates: Sequence[Aggregate]
    ) -> dict[tuple[str, tuple[Any, ...]], object]:
        """Compute what `read` reads from the files and the event log, as a proof does."""
        return self.read_at([t], aggregates)[0]

    def read_at(
        self, moments: Sequence[int], aggregates: Sequence[Aggregate]
    ) -> list[dict[tuple[str, tuple[Any, ...]], object]]:
        """The same at several moments at once."""
        schemas = {self.source.content: schema_of()}
        fields = pa.table({name: pa.array(FIELDS[name] * len(moments), SCHEMA.field(name).type) for name in FIELDS})  # fmt: skip
        at = np.repeat(np.array(moments, np.int64), len(ENTITIES))
        rows = served_rows(self.folder, [self.source], schemas)
        values = self.engine.aggregates(groupings_of(aggregates), schemas, Asked(fields, at, at), rows=rows, world="as_of")  # fmt: skip
        return [
            found_in({name: array.slice(place * len(ENTITIES), len(ENTITIES)) for name, array in values.items()}, aggregates)
            for place in range(len(moments))
        ]  # fmt: skip

    def moment(self) -> int:
        assert self.store is not None
        with self.store.snapshot() as snapshot:
            return snapshot.moment()

    def check(self, t: int, *, batch: bool = True) -> None:
        """Compare everything that can be read at `t`, and computed in batch, with the oracle.

        Args:
            batch: a batch takes ten times as long as a read: where a history is checked at every step, its end is enough, since every step is the end
                of another one.
        """
        expected: dict[tuple[str, tuple[Any, ...]], object] = {}
        fitting: list[Aggregate] = []
        for aggregate in self.aggregates:
            said = said_by_oracle(versions_of(self.told, aggregate), aggregate, t)
            if said is None:
                for read in (self.read, self.read_in_batch) if batch else (self.read,):
                    with pytest.raises(AsOfError, match="does not fit 64 bits"):
                        read(t, [aggregate])
            else:
                fitting.append(aggregate)
                expected |= said
        assert self.read(t, fitting) == expected, t
        if batch:
            assert self.read_in_batch(t, fitting) == expected, t
        self.check_tallies()

    def check_tallies(self) -> None:
        """Every chunk of an entity but the last has its tally, that of its rows."""
        assert self.store is not None
        index = self.store.index
        with index.read() as txn:
            places = [place for written in self.store.written(txn).values() for place in written.places]
            for place in places:
                entities: dict[bytes, list[tuple[int, bytes]]] = {}
                for key, chunk in index.all_chunks(txn, place.prefix):
                    entities.setdefault(key[:-8], []).append((start_of(key), chunk))
                records: dict[bytes, list[Tallies]] = {}
                for key, record in index.all_tallies(txn, place.prefix):
                    found = unpack(place.layout.words.tally, Record(start_of(key), record))
                    assert start_of(key) == found.starts[0]
                    records.setdefault(key[:-8], []).append(found)
                for entity, chunks in entities.items():
                    made = records.pop(entity, [])
                    assert [start for one in made for start in one.starts.tolist()] == [
                        start for start, _ in chunks[:-1]
                    ]
                    if made:
                        words = place.layout.words.tally
                        fresh = [tallies_of_chunks(place.layout, [chunk]) for chunk in chunks[:-1]]
                        table = words.together([*made, *fresh]).table
                        assert np.array_equal(table[: len(fresh)], table[len(fresh) :])
                assert not records


@contextmanager
def world(
    versions: str = "by_version",
    specs: Sequence[tuple[Any, ...]] = (),
    *,
    files: Sequence[Row] = (),
    replay: bool = False,
    cutover: int = 10,
    chunk_rows: int = 3,
    within: str | None = None,
    redis: RedisServer | None = None,
) -> Iterator[World]:
    """Give a world with its store filled."""
    table = pa.Table.from_pylist(list(files), schema=SCHEMA)
    named = NAMED[versions.removeprefix("closing ")]
    source = sw.Source("rows", table, event_time="e", available_at="a", corrections_within=within, **named)
    specs = specs or [windowed("count", None, ("k1",), where=False, windows=[Window()])]
    with tempfile.TemporaryDirectory() as folder:
        made = World(
            source, Path(folder) / "state", replay, cutover, FakeClock(cutover), chunk_rows,
            [aggregate_of(source, spec) for spec in specs],
        )  # fmt: skip
        if redis is not None:
            redis.empty()
            made.redis = redis.address
        read = [row for row in files if row["a"] is not None and row["a"] < cutover]
        ties = ties_of(source, read)
        made.told = [Told(row, row["a"], tie) for row, tie in zip(read, ties, strict=True)]
        made.open()
        try:
            yield made
        finally:
            made.close()


def row(**values: Any) -> Row:
    """A row; what is not given is null, but its event time is 1."""
    return dict.fromkeys(SCHEMA.names) | {"e": 1} | values


times = st.integers(0, 40)
rows = st.fixed_dictionaries(
    {
        "k1": st.sampled_from(["a", "a", "a", "ü\u2028", "", LONG, None]),
        "k2": st.sampled_from([0, 0, 1, None]),
        "k3": st.sampled_from([True, False, None]),
        "k4": st.sampled_from([1, 2, None]),
        "e": times,
        "a": st.one_of(times, times, st.none()),
        "id": st.sampled_from(["p", "q", "r", "s", LONG, None]),
        "v": st.sampled_from([0, 1, 2, None]),
        "d": st.sampled_from([False, False, False, True, None]),
        **values(finite=True),
    }
)
histories = st.lists(rows, max_size=26)
WINDOWS = [Window(), Window("3us"), Window("12us"), Window("50us"), Window("6us", ahead=True)]
some_windows = st.lists(st.sampled_from(WINDOWS), min_size=1, max_size=3, unique=True)
keyings = st.sampled_from([("k1",), ("k1",), ("k1", "k2"), ("k3",), ("k4", "k1")])
spec = st.builds(
    lambda call, keys, where, windows: windowed(
        call[0], next(iter(call[1]), None), keys, where=where, windows=windows, given=call[2]
    ),
    st.sampled_from(CASES).flatmap(lambda case: calls(*case)),
    keyings,
    st.booleans(),
    some_windows,
)
specs = st.lists(spec, min_size=1, max_size=9)
EVENTS = st.sampled_from(["nothing", "reopen", "rebuild", "fewer models", "all models"])


def happen(what: str, here: World, everything: Sequence[Aggregate], served: int) -> None:
    """What an operator may do between two deliveries."""
    match what:
        case "reopen":
            here.open()
        case "rebuild":
            here.close()
            shutil.rmtree(here.folder / "index")
            here.open()
        case "fewer models":
            here.open(everything[:served])
        case "all models":
            here.open(everything)
        case _:
            pass


def first_versions_first(rows: Sequence[tuple[Row, int]]) -> list[tuple[Row, int]]:
    """Exchange the first row of every fact with the one of its rows that is readable first."""
    rows = list(rows)
    for fact in {row["id"] for row, _ in rows} - {None}:
        places = [place for place, (row, _) in enumerate(rows) if row["id"] == fact]
        first = min(places, key=lambda place: rows[place][0]["a"])
        rows[places[0]], rows[first] = rows[first], rows[places[0]]
    return rows


def closing(versions: str, data: st.DataObject) -> str | None:
    """Draw for how long corrections count, if they do not for ever."""
    return f"{data.draw(st.integers(1, 15), 'within')}us" if versions in CLOSING else None


def split(items: Sequence[Any], sizes: Sequence[int]) -> list[list[Any]]:
    """Cut a list into consecutive parts of these sizes; the last takes the rest."""
    parts: list[list[Any]] = []
    start = 0
    for size in sizes:
        parts.append(list(items[start : start + size]))
        start += size
    parts.append(list(items[start:]))
    return [part for part in parts if part]


@pytest.mark.slow
@pytest.mark.parametrize(("versions", "store"), [*ON_ONE_HOST, ("by_version", "redis")])
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_replay_through_the_store_equals_the_oracle_bit_for_bit(
    versions: str, store: str, redis: RedisServer, data: st.DataObject
) -> None:
    # given files with everything, of which a part becomes readable before the cutover
    history = data.draw(histories, "history")
    history += [
        history[i] for i in data.draw(st.lists(st.integers(0, 25), max_size=3), "again") if i < len(history)
    ]
    cutover = data.draw(st.integers(1, 20), "cutover")
    wanted = data.draw(specs, "features")
    within = closing(versions, data)
    served = data.draw(st.integers(1, len(wanted)), "models")
    chunk_rows = data.draw(st.integers(2, 5), "chunk_rows")
    moments = sorted(
        data.draw(st.lists(st.integers(cutover, 60), min_size=1, max_size=4, unique=True), "moments")
    )
    with world(
        versions, wanted, files=history, replay=True, cutover=cutover, chunk_rows=chunk_rows, within=within,
        redis=redis if store == "redis" else None,
    ) as here:  # fmt: skip
        everything = here.aggregates
        assert here.store is not None
        rest = [row for row in history if row["a"] is not None and row["a"] >= cutover]
        ties = ties_of(here.source, rest)
        never = [row for row in history if row["a"] is None]
        since, number = cutover, 0
        for t in moments:
            # when the events up to a moment come in any order, grouped, repeated
            now = [(row, tie) for row, tie in zip(rest, ties, strict=True) if since <= row["a"] < t]
            now = data.draw(st.permutations(now), "order")
            now = first_versions_first(now) if within else now
            here.told += [Told(row, row["a"], tie) for row, tie in now]
            deliveries: list[tuple[str, list[Row]]] = []
            for part in split(
                [row for row, _ in now] + never, data.draw(st.lists(st.integers(1, 4), max_size=4), "sizes")
            ):
                deliveries.append((f"key {number}", part))
                number += 1
            repeated = [one for one in deliveries if data.draw(st.booleans(), "repeated")]
            for group in split(
                deliveries + repeated, data.draw(st.lists(st.integers(1, 3), max_size=3), "groups")
            ):
                answers = here.take(*group)
                assert [type(answer) for answer in answers] == [Taken] * len(group)
                happen(data.draw(EVENTS, "then"), here, everything, served)
            here.store.pass_moment(t)
            since = t
            # then every value is the oracle's
            here.check(t, batch=t == moments[-1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("versions", "store"), [*ON_ONE_HOST, ("append_only", "redis"), ("closing by_arrival", "redis")]
)
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_live_store_equals_the_oracle_at_every_snapshot_bit_for_bit(
    versions: str, store: str, redis: RedisServer, data: st.DataObject
) -> None:
    # given files, and events that will come whenever they come
    files = data.draw(st.lists(rows, max_size=10), "files")
    history = data.draw(histories, "history")
    cutover = data.draw(st.integers(1, 20), "cutover")
    wanted = data.draw(specs, "features")
    within = closing(versions, data)
    served = data.draw(st.integers(1, len(wanted)), "models")
    chunk_rows = data.draw(st.integers(2, 5), "chunk_rows")
    with world(
        versions, wanted, files=files, cutover=cutover, chunk_rows=chunk_rows, within=within,
        redis=redis if store == "redis" else None,
    ) as here:  # fmt: skip
        everything = here.aggregates
        sizes = data.draw(st.lists(st.integers(1, 5), max_size=8), "sizes")
        deliveries = [(f"key {number}", part) for number, part in enumerate(split(history, sizes))]
        repeated = [one for one in deliveries if data.draw(st.booleans(), "repeated")]
        ties = dict(enumerate(ties_of(here.source, history)))
        place, stamps = 0, list[int]()
        for group in split(
            deliveries + repeated, data.draw(st.lists(st.integers(1, 3), max_size=6), "groups")
        ):
            # when a group is committed, by a clock that may stand still or go back
            here.clock.time += data.draw(st.integers(-2, 9), "clock")
            assert all(isinstance(answer, Taken) for answer in here.take(*group))
            log = list(event_log.deliveries(here.folder / "events"))
            for _, delivery in log[len(stamps) :]:
                stamps.append(delivery.stamp)
                for row in dict(deliveries)[delivery.key]:
                    here.told.append(Told(row, delivery.stamp, ties[place]))
                    place += 1
            happen(data.draw(EVENTS, "then"), here, everything, served)
            # then a snapshot has all of it, and every value is the oracle's
            here.check(here.moment(), batch=False)
        assert stamps == sorted(set(stamps))
        assert [delivery.key for _, delivery in log] == [key for key, _ in deliveries] if deliveries else True
        here.clock.time += data.draw(st.integers(0, 60), "later")
        here.check(here.moment())


def every_call(windows: Sequence[Window] = (Window(),)) -> list[tuple[Any, ...]]:
    """Every aggregation of every family, over each of the family's columns."""
    arguments = {"prior": 0.5, "weight": 2.0, "n": 3}
    made: list[tuple[Any, ...]] = []
    for operation, family in CASES:
        given = {name: arguments.get(name, "y") for name in AGGREGATIONS[operation].arguments}
        for column in COLUMNS[family] if family else [None]:
            made.append(windowed(operation, column, ("k1",), where=False, windows=windows, given=given))
    return made


def filled(number: int) -> Row:
    """Values in every column, different for different numbers."""
    return {
        "n": number * 7 - 3, "huge": 2**62 - number, "small": number, "unsigned": 2**32 - 1 - number, "x": number / 7, "y": number * 0.1, "half": number * 0.5,
        "b": number % 2 == 0, "m": Decimal(number * 11 - 40).scaleb(-2), "tiny": Decimal(number).scaleb(-18), "whole": Decimal(number),
        "w": number * 1000 + 1, "s": chr(0x0430 + number % 31),
    }  # fmt: skip


@pytest.mark.parametrize("versions", list(NAMED))
def test_every_aggregation_of_every_column_is_read_as_the_oracle_and_the_batch_say(versions: str) -> None:
    # long histories of many chunks, so that what is read of them matters
    random = np.random.default_rng(11)
    windows = [Window(), Window("12us"), Window("6us", ahead=True)]
    files = [
        row(
            id=f"f{i % 9}",
            v=i % 3,
            k1="a",
            a=int(random.integers(0, 10)),
            **(filled(i) | {"huge": i, "e": i % 12}),
        )
        for i in range(20)
    ]
    with world(versions, every_call(windows), files=files, chunk_rows=2) as here:
        here.check(here.moment())
        for number in range(6):
            here.clock.time += 5
            told = [
                row(
                    id=f"f{random.integers(0, 20)}",
                    v=int(random.integers(0, 9)),
                    d=bool(random.random() < 0.1),
                    k1="a" if random.random() < 0.8 else "",
                    **{
                        name: value if random.random() < 0.7 else None
                        for name, value in (filled(int(random.integers(20, 60))) | {"huge": number}).items()
                    },
                )
                | {"e": int(here.clock.time + random.integers(-30, 5))}
                for _ in range(7)
            ]
            tell(here, f"key {number}", told)
            here.check(here.moment())


@pytest.mark.parametrize("wanted", [1, 3, 7])
def test_the_latest_rows_of_all_history_are_found_however_far_back_they_are(wanted: int) -> None:
    specs_here = [
        windowed("last_n", "s", ("k1",), where=False, windows=[Window()], given={"n": wanted}),
        windowed("last", "n", ("k1",), where=False, windows=[Window()]),
        windowed("sum", "x", ("k1",), where=False, windows=[Window("3us")]),
    ]
    files = [row(k1="a", a=1, e=e, s="old", n=e) for e in range(-30, 0)]
    files += [row(k1="a", a=1, e=e, s=chr(97 + e), n=None) for e in range(8)]
    files += [row(k1="a", a=1, e=e, x=0.5, n=e) for e in range(8, 40)]
    with world("append_only", specs_here, files=files, cutover=50, chunk_rows=3) as here:
        here.check(here.moment())
        tell(here, "later", [row(k1="a", e=45, s="z")])
        here.check(here.moment())
        found = here.read()[here.aggregates[0].columns[0], ("a",)]
        assert found == [*(chr(97 + e) for e in range(9 - wanted, 8)), "z"]
        # and rows before them are not read
        assert here.store is not None
        reach = here.store.reach(here.store.groupings[0])
        with here.store.index.read() as txn:
            place = here.store.kept(txn).groupings[reach.content].prefix
            (found,) = here.store.index.chunks_of(txn, place, reach, [["a"]], here.moment())
            assert min(int(reach.layout.unpack(chunk)[0][0, 0]) for chunk in found.chunks) >= -3


def test_a_decimal_is_read_digit_by_digit_and_refused_where_it_does_not_fit() -> None:
    with world() as here:
        assert here.store is not None
        given = (
            b'[{"e": "1970-01-01T00:00:00Z", "k1": "a", "m": 9999999999999999.99, "tiny": 0.100000000000000001},'
            b' {"e": "1970-01-01T00:00:00Z", "k1": "a", "m": "-0.10", "tiny": "1e-18"},'
            b' {"e": "1970-01-01T00:00:00Z", "k1": "a", "m": 3}]'
        )
        read = EventReader(here.source, schema_of()).read(given)
        assert read["m"].to_pylist() == [Decimal("9999999999999999.99"), Decimal("-0.10"), Decimal("3.00")]
        assert read["tiny"].to_pylist() == [Decimal("0.100000000000000001"), Decimal("1e-18"), None]
        for value in (
            b"0.001",
            b"10000000000000000",
            b'"NaN"',
            b'"ten"',
            b"true",
            b"1e400",
            b'"Infinity"',
            b"[]",
        ):
            with pytest.raises(DataError):
                here.store.prepare("rows", "1", b'[{"e": "1970-01-01T00:00:00Z", "m": ' + value + b"}]")


def test_an_event_that_the_engine_writes_is_read_as_it_was() -> None:
    rows_here = [row(k1="a", a=11, **filled(i)) for i in range(1, 5)] + [
        row(k1="a", a=12, m=Decimal("-0.05"), tiny=Decimal("-0.5"), whole=Decimal(0)),
    ]
    source = sw.Source(
        "rows", pa.Table.from_pylist(rows_here, schema=SCHEMA), event_time="e", available_at="a"
    )
    engine = DuckDBEngine(threads=1)
    _, events = engine.event_json(source, schema_of(), 0, 100)
    engine.close()
    read = EventReader(source, schema_of()).read(f"[{','.join(events)}]".encode())
    by_n = sorted(read.to_pylist(), key=str)
    assert by_n == sorted(source.data.to_pylist(), key=str)


COUNT = windowed("count", None, ("k1",), where=False, windows=[Window()])
COUNT_BY_TWO = windowed("count", None, ("k2", "k1"), where=False, windows=[Window()])
SUM_SHORT = windowed("sum", "x", ("k1",), where=False, windows=[Window("3us")])
SUM_LONG = windowed("sum", "x", ("k1",), where=False, windows=[Window("50us")])


def count_of(here: World, key: str) -> object:
    """What the first aggregate, a count by k1, is for one entity now."""
    return here.read()[here.aggregates[0].columns[0], (key,)]


def tell(here: World, key: str, rows: Sequence[Row]) -> None:
    """Deliver rows live, and tell the oracle."""
    assert here.store is not None
    answers = here.take((key, rows))
    assert isinstance(answers[0], Taken), answers
    stamp = dict(event_log.deliveries(here.folder / "events"))[answers[0].sequence].stamp
    here.told += [Told(row, stamp, tie) for row, tie in zip(rows, ties_of(here.source, rows), strict=True)]


some_facts = st.lists(
    st.fixed_dictionaries(
        {
            "id": st.sampled_from("pq"),
            "v": st.integers(0, 3),
            "a": st.integers(0, 24),
            "d": st.booleans(),
            "k1": st.sampled_from(["a", "a", ""]),
        }
    ),
    min_size=6,
    max_size=14,
)


@pytest.mark.parametrize("replay", [False, True], ids=["live", "replay"])
@pytest.mark.parametrize("versions", ["by_arrival", "by_version"])
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    facts=some_facts,
    within=st.integers(1, 9),
    cutover=st.integers(0, 12),
    step=st.integers(2, 6),
    data=st.data(),
)
def test_facts_that_close_equal_the_oracle_step_by_step(
    versions: str, replay: bool, facts: list[Row], within: int, cutover: int, step: int, data: st.DataObject
) -> None:
    # given two facts with many versions, each of which shows in a sum
    history = [row(n=2**number) | one for number, one in enumerate(facts)]
    total = windowed("sum", "n", ("k1",), where=False, windows=[Window()])
    with world(
        versions, [total], files=history, replay=replay, cutover=cutover, within=f"{within}us"
    ) as here:
        assert here.store is not None
        told = list(zip(history, ties_of(here.source, history), strict=True))
        said: dict[int, dict[tuple[str, tuple[Any, ...]], object]] = {}
        for time in range(cutover, 26, step):
            # when those of a few instants come in any order, but first versions first
            now = [(one, tie) for one, tie in told if time <= one["a"] < time + step]
            for part in split(first_versions_first(data.draw(st.permutations(now), "order")), [1, 2, 1]):
                here.clock.time = time
                mixed = part[::-1] if data.draw(st.booleans(), "mixed") else part
                (taken,) = here.take((f"key {len(here.told)}", [one for one, _ in mixed]))
                assert isinstance(taken, Taken)
                stamp = dict(event_log.deliveries(here.folder / "events"))[taken.sequence].stamp
                here.told += [Told(one, stamp or one["a"], tie) for one, tie in part]
            if time <= 12 < time + step:
                happen(data.draw(st.sampled_from(["nothing", "rebuild"]), "then"), here, here.aggregates, 1)
            # then every value is the oracle's
            t = time + step if replay else here.moment()
            assert not replay or here.store.pass_moment(t)
            expected = said_by_oracle(versions_of(here.told, here.aggregates[0]), here.aggregates[0], t)
            assert expected is not None
            assert here.read(t) == expected, t
            said[t] = expected
        # also in batch, where what came later makes no difference
        assert dict(zip(said, here.read_at(list(said), here.aggregates), strict=True)) == said


def test_events_taken_while_a_model_was_not_served_are_there_when_it_is_again() -> None:
    with world("by_version", [COUNT, COUNT_BY_TWO]) as here:
        both = here.aggregates
        tell(here, "1", [row(id="p", v=1, k1="a", k2=0)])
        here.open(both[:1])
        tell(here, "2", [row(id="q", v=1, k1="a", k2=0)])
        here.open(both)
        here.check(here.moment())


def test_a_correction_taken_while_a_model_was_not_served_moves_the_row_everywhere() -> None:
    with world("by_version", [COUNT, COUNT_BY_TWO]) as here:
        both = here.aggregates
        tell(here, "1", [row(id="p", v=1, k1="a", k2=0), row(id="q", v=1, k1="a", k2=0)])
        here.open(both[:1])
        tell(here, "2", [row(id="p", v=2, k1="", k2=1)])
        here.check(here.moment())
        here.open(both)
        here.check(here.moment())
        tell(here, "3", [row(id="p", v=3, k1="a", k2=1), row(id="q", v=2, k1="", k2=1)])
        here.check(here.moment())


def test_whoever_writes_keeps_up_the_groupings_of_other_models() -> None:
    with world("by_version", [COUNT, COUNT_BY_TWO]) as here:
        both = here.aggregates
        tell(here, "1", [row(id="p", v=1, k1="a", k2=0)])
        here.open(both[:1])
        tell(here, "2", [row(id="p", v=2, k1="", k2=1)])
        here.check(here.moment())
        here.open(both, fill=False)
        assert here.store is not None
        assert not here.store.missing()
        tell(here, "3", [row(id="p", v=3, k1="a", k2=1)])
        here.check(here.moment())


def test_what_is_not_kept_any_more_never_gives_a_wrong_value() -> None:
    with world("by_version", [COUNT, COUNT_BY_TWO]) as here:
        both = here.aggregates
        tell(here, "1", [row(id="p", v=1, k1="a", k2=0)])
        here.open(both[:1]).forget_others()
        tell(here, "2", [row(id="p", v=2, k1="", k2=1)])
        here.check(here.moment())
        here.open(both, fill=False)
        assert here.store is not None
        assert [grouping.keys for grouping in here.store.missing()] == [("k2", "k1")]
        with pytest.raises(StoreError, match="not filled"):
            here.read()
        tell(here, "3", [row(id="p", v=3, k1="a", k2=1)])
        here.store.fill(here.engine)
        assert not here.store.missing()
        here.check(here.moment())
        # and what was forgotten leaves nothing behind
        with here.store.index.read() as txn:
            assert not here.store.index.get(txn, "garbage")
            prefixes = [g.prefix for g in here.store.kept(txn).groupings.values()]
            with txn.cursor(here.store.index._rows) as cursor:
                assert {bytes(key[:16]) for key, _ in cursor} <= set(prefixes)


def test_a_narrower_model_reads_what_is_kept_for_a_wider_one() -> None:
    with world("by_version", [COUNT, SUM_SHORT, SUM_LONG]) as here:
        wide = here.aggregates
        tell(here, "1", [row(id="p", v=1, k1="a", x=0.5)])
        for some in (wide[:1], wide[1:2], wide[1:]):
            here.open(some, fill=False)
            assert here.store is not None
            assert not here.store.missing()
            tell(here, str(some), [row(id="p", v=len(here.told), k1="a", x=len(here.told) / 7)])
            here.check(here.moment())


@pytest.mark.parametrize("replay", [False, True], ids=["live", "replay"])
@pytest.mark.parametrize("versions", [*NAMED, *CLOSING])
@settings(max_examples=3, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_what_comes_while_a_new_grouping_is_filled_is_neither_lost_nor_doubled(
    versions: str, replay: bool, data: st.DataObject
) -> None:
    # given a store that serves one grouping
    history = data.draw(st.lists(rows, min_size=12, max_size=26), "history")
    within = closing(versions, data)
    totals = [
        windowed("sum", "n", keys, where=False, windows=[Window()])
        for keys in (("k1",), ("k1", "k2"), ("k3",))
    ]
    with world(
        versions, [COUNT, *totals, SUM_LONG], files=[r for r in history if r["a"] is not None and r["a"] < 10], replay=replay, within=within
    ) as here:  # fmt: skip
        everything = here.aggregates
        here.close()
        shutil.rmtree(here.folder)
        here.open(everything[:1])
        later = [r for r in history if r["a"] is not None and r["a"] >= 10]
        later = first_versions_first(list(zip(later, ties_of(here.source, later), strict=True)))
        parts = split(later, [1] * 8)

        def deliver() -> None:
            if not parts:
                return
            part = parts.pop(0)
            here.clock.time += 1
            (taken,) = here.take((f"key {len(here.told)}", [one for one, _ in part]))
            if isinstance(taken, Taken):
                stamp = dict(event_log.deliveries(here.folder / "events"))[taken.sequence].stamp
                here.told += [Told(one, stamp or one["a"], tie) for one, tie in part]

        deliver()
        # when others are filled, and events come between the steps of it
        store = here.open(everything, fill=False)
        sweep, write = store.index.sweep, store.index.write_gently
        store.index.write_gently = lambda puts: (deliver(), write(puts), deliver())[1]  # type: ignore[method-assign]
        store.index.sweep = lambda: (deliver(), sweep())[1]  # type: ignore[method-assign]
        store.fill(here.engine, cutover=10, say=lambda _: deliver())
        # then every value is the oracle's, at once and after more has come
        assert not store.missing()
        while True:
            t = 60 if replay else here.moment()
            here.check(t)
            if not parts:
                break
            deliver()


def test_a_row_that_only_another_models_window_reaches_is_kept() -> None:
    with world("append_only", [SUM_SHORT, SUM_LONG], chunk_rows=2) as here:
        both = here.aggregates
        here.open(both[:1])
        for time in range(11, 40):
            here.clock.time = time
            tell(here, f"key {time}", [row(k1="a", e=time - 1, x=0.1 * time)])
        here.check(here.moment())
        here.open(both)
        here.check(here.moment())
        here.open(both[:1])
        for time in range(40, 60):
            here.clock.time = time
            tell(here, f"key {time}", [row(k1="a", e=time - 1, x=0.1 * time)])
        here.open(both)
        here.check(here.moment())


def test_rows_that_no_window_reaches_any_more_go_and_the_others_stay() -> None:
    with world("append_only", [SUM_SHORT], chunk_rows=2) as here:
        for time in range(11, 80):
            here.clock.time = time
            # late by up to 7 us, and every tenth row is about the future
            tell(
                here,
                f"key {time}",
                [row(k1="a", e=time + 20 if time % 10 == 0 else time - time % 8, x=0.1 * time)],
            )
            here.check(here.moment())
        assert here.store is not None
        with here.store.index.read() as txn:
            kept = txn.stat(here.store.index._rows)["entries"]
        assert kept < 69 / 4


@pytest.mark.parametrize("late", [30, 3])
def test_a_row_too_late_for_any_window_takes_no_other_with_it(late: int) -> None:
    """What is before the first chunk that is left has a place of its own; what comes with it has not."""
    with world("append_only", [SUM_SHORT], chunk_rows=2) as here:
        for time in range(11, 60):
            here.clock.time = time
            several = [row(k1="a", e=time - late, x=1.0), row(k1="a", e=time, x=0.1 * time)]
            tell(here, f"key {time}", several if time % 5 == 0 else several[1:])
            here.check(here.moment())


def test_a_store_rebuilt_from_files_and_log_reads_the_same() -> None:
    files = [row(id="p", v=0, k1="a", k2=0, a=1, x=0.1), row(id="q", v=0, k1="a", k2=1, a=2, x=0.2)]
    with world("by_version", [COUNT, COUNT_BY_TWO, SUM_LONG], files=files) as here:
        tell(here, "1", [row(id="p", v=1, k1="", k2=0, x=0.3)])
        tell(here, "2", [row(id="q", v=1, d=True)])
        t = here.moment()
        before = here.read(t)
        here.close()
        shutil.rmtree(here.folder / "index")
        here.cutover = 10
        here.open()
        assert here.read(t) == before
        here.check(here.moment())
        assert here.take(("1", [row(id="p", v=1, k1="", k2=0, x=0.3)])) == [Taken(1, True, 2)]


def test_a_model_with_a_new_grouping_is_filled_from_files_and_log() -> None:
    files = [
        row(id="p", v=0, k1="a", k2=0, a=1),
        row(id="q", v=0, k1="a", k2=1, a=2),
        row(k1="a", k2=0, a=10),
    ]
    with world("by_version", [COUNT, COUNT_BY_TWO, SUM_LONG], files=files) as here:
        three = here.aggregates
        here.open(three[:1])
        tell(here, "1", [row(id="p", v=1, k1="", k2=0, x=1.5), row(k1="a", k2=1, x=0.1)])
        here.open(three)
        here.check(here.moment())
        tell(here, "2", [row(id="p", v=2, k1="a", k2=1, x=2.5)])
        here.check(here.moment())


def test_a_repeated_delivery_is_acknowledged_and_changes_nothing() -> None:
    with world() as here:
        tell(here, "1", [row(k1="a")])
        assert here.take(("1", [row(k1="a")]), ("1", [row(k1="a")])) == [Taken(1, True, 1)] * 2
        assert count_of(here, "a") == 1
        assert len(list(event_log.deliveries(here.folder / "events"))) == 1


def test_a_delivery_repeated_within_its_group_is_taken_once() -> None:
    with world() as here:
        assert here.take(("1", [row(k1="a")]), ("1", [row(k1="a")])) == [
            Taken(1, False, 1),
            Taken(1, True, 1),
        ]
        assert count_of(here, "a") == 1


def test_a_key_used_for_other_events_is_refused() -> None:
    with world() as here:
        tell(here, "1", [row(k1="a")])
        answers = here.take(("1", [row(k1="")]), ("2", [row(k1="a")]))
        assert str(answers[0]) == (
            "The delivery key '1' was used for other events.\n"
            "  in: source 'rows'\n"
            "  expected: the same events under the same key\n"
            "  do: give every delivery its own Idempotency-Key."
        )
        assert answers[1] == Taken(1, False, 2)
        assert (count_of(here, "a"), count_of(here, "")) == (2, 0)


def test_a_late_retry_of_an_old_version_never_reverts_a_correction() -> None:
    with world("by_version", [windowed("last", "x", ("k1",), where=False, windows=[Window()])]) as here:
        tell(here, "1", [row(id="p", v=1, k1="a", x=1.0)])
        tell(here, "2", [row(id="p", v=2, k1="a", x=2.0)])
        tell(here, "the first once more, under another key", [row(id="p", v=1, k1="a", x=1.0)])
        assert count_of(here, "a") == bits(2.0)
        here.check(here.moment())


def test_a_deletion_may_precede_its_row_and_a_later_version_revives_it() -> None:
    with world("by_version") as here:
        tell(here, "1", [row(id="p", v=2, d=True)])
        tell(here, "2", [row(id="p", v=1, k1="a")])
        assert count_of(here, "a") == 0
        tell(here, "3", [row(id="p", v=3, k1="a")])
        assert count_of(here, "a") == 1
        here.check(here.moment())


def heads(here: World) -> list[bytes]:
    """What the index knows of facts, one a fact."""
    assert here.store is not None
    with here.store.index.read() as txn, txn.cursor(here.store.index._facts) as cursor:
        return [bytes(value) for _, value in cursor]


def test_a_correction_counts_online_until_its_fact_closes_and_is_taken_all_the_same_from_then_on() -> None:
    with world("by_version", [SUM_LONG], within="10us") as here:
        for number, (time, value) in enumerate([(20, 1.0), (29, 2.0), (30, 3.0), (45, 4.0)]):
            here.clock.time = time
            tell(here, str(number), [row(id="p", v=number, k1="a", e=15, x=value)])
            assert count_of(here, "a") == bits(min(value, 2.0))
            here.check(here.moment())
        here.clock.time = 46
        tell(here, "deleted", [row(id="p", v=9, d=True), row(id="q", v=0, k1="a", e=15, x=0.5)])
        assert count_of(here, "a") == bits(2.5)
        here.check(here.moment())
        assert len(list(event_log.deliveries(here.folder / "events"))) == 5
        before = here.read(here.moment())
        here.close()
        shutil.rmtree(here.folder / "index")
        here.open()
        assert here.read(here.moment()) == before
        here.check(here.moment())


def test_a_fact_that_is_closed_is_forgotten_but_for_having_been_there() -> None:
    files = [row(id=f"file {number}", v=0, k1="a", a=number, e=number, x=1.0) for number in range(1, 6)]
    with world("by_version", [SUM_LONG], files=files, within="10us", cutover=11) as here:
        for time in (11, 12, 13, 14):
            here.clock.time = time
            tell(here, str(time), [row(id=str(time), v=0, k1="a", e=time, x=1.0)])
        assert sorted(map(bool, heads(here))) == [False] * 5 + [True] * 4
        here.clock.time = 40
        tell(here, "late", [row(id=fact, v=1, k1="a", e=1, x=100.0) for fact in ("file 1", "11", "14")])
        assert heads(here) == [b""] * 9
        assert count_of(here, "a") == bits(9.0)
        here.check(here.moment())
        tell(here, "later", [row(id=fact, v=2, d=True) for fact in ("file 5", "12")])
        here.check(here.moment())
        # and a store that is filled again knows what it must
        here.close()
        shutil.rmtree(here.folder / "index")
        here.open()
        tell(here, "last", [row(id=fact, v=3, d=True) for fact in ("file 4", "13")])
        here.check(here.moment())
        assert count_of(here, "a") == bits(9.0)


def test_closing_is_spread_over_the_deliveries_to_come() -> None:
    with world("by_version", [SUM_LONG], within="10us") as here:
        here.clock.time = 20
        tell(here, "many", [row(id=str(number), v=0, k1="a", x=1.0) for number in range(9)])
        here.clock.time = 50
        left = []
        for number in range(5):
            tell(here, f"one {number}", [row(k1="a", x=1.0)])
            left.append(sum(map(bool, heads(here))))
        assert left == [7, 5, 3, 1, 0]


def test_facts_that_are_not_closed_in_time_never_give_a_wrong_value() -> None:
    with world("by_version", [SUM_LONG], within="10us") as here:
        assert here.store is not None
        here.store.index.close_facts = lambda *_: None  # type: ignore[method-assign] # as if there were always too many
        for number, time in enumerate([20, 29, 30, 31]):
            here.clock.time = time
            tell(here, str(number), [row(id="p", v=number, k1="a", e=15, x=float(number))])
            here.check(here.moment())
        assert all(heads(here))


def test_a_replay_of_a_source_that_closes_its_facts_takes_first_versions_first() -> None:
    with world("by_version", [COUNT], replay=True, within="10us") as here:
        assert here.store is not None
        assert here.take(("1", [row(id="p", v=1, k1="a", a=20)])) == [Taken(1, False, 1)]
        earlier = [row(id="q", v=1, k1="a", a=5), row(id="p", v=0, k1="a", a=19)]
        refused, taken, same = here.take(
            ("2", earlier), ("3", [row(id="p", v=2, k1="a", a=20)]), ("1", [row(id="p", v=1, k1="a", a=20)])
        )
        assert isinstance(refused, ReplayOrderError)
        assert str(refused) == (
            "1 facts of source 'rows' have versions that became readable before the first one that came.\n"
            "  in: fact 'p'\n"
            "  expected: available times of at least 20 us\n"
            "  found: 19 us\n"
            "  do: replay events in the order of time: corrections count within 10us of the first version."
        )
        assert (taken, same) == (Taken(1, False, 2), Taken(1, True, 2))
        # within a delivery the order does not matter, between those of one commit it does
        answers = here.take(
            ("4", [row(id="r", v=2, k1="", a=32), row(id="r", v=1, k1="a", a=21)]),
            ("5", [row(id="r", v=0, k1="a", a=20)]),
        )
        assert [type(answer) for answer in answers] == [Taken, ReplayOrderError]
        told = [("p", 1, 20, "a"), ("p", 2, 20, "a"), ("r", 2, 32, ""), ("r", 1, 21, "a")]
        rows_told = [row(id=fact, v=version, k1=key, a=time) for fact, version, time, key in told]
        here.told = [
            Told(one, one["a"], tie)
            for one, tie in zip(rows_told, ties_of(here.source, rows_told), strict=True)
        ]
        here.check(40)


def test_a_replay_refuses_an_event_readable_before_a_moment_that_has_passed() -> None:
    with world("append_only", replay=True) as here:
        assert here.store is not None
        here.store.pass_moment(20)
        early, same = here.take(("1", [row(k1="a", a=25), row(k1="a", a=19)]), ("2", [row(k1="a", a=20)]))
        assert isinstance(early, ReplayOrderError)
        assert str(early) == (
            "1 events of source 'rows' became readable before a moment that has passed.\n"
            "  expected: available times of at least 20 us\n"
            "  found: 19 us\n"
            "  do: replay events and requests in the order of time."
        )
        assert same == Taken(1, False, 1)
        assert here.read(21)[here.aggregates[0].columns[0], ("a",)] == 1


def test_a_delivery_that_was_taken_may_be_repeated_after_its_moment_passed() -> None:
    with world("append_only", replay=True) as here:
        assert here.store is not None
        assert here.take(("1", [row(k1="a", a=12)])) == [Taken(1, False, 1)]
        here.store.pass_moment(20)
        assert here.take(("1", [row(k1="a", a=12)])) == [Taken(1, True, 1)]


def test_a_replayed_row_without_its_available_time_is_never_readable_and_supersedes_nothing() -> None:
    with world("by_version", replay=True) as here:
        assert here.take(("1", [row(id="p", v=1, k1="a", a=12)]), ("2", [row(id="p", v=2, k1="", a=None)]))
        read = here.read(2**60)
        column = here.aggregates[0].columns[0]
        assert (read[column, ("a",)], read[column, ("",)]) == (1, 0)


def test_an_event_that_is_not_the_sources_is_refused_and_nothing_is_taken() -> None:
    with world() as here:
        assert here.store is not None
        for events in (
            b"{",
            b'[{"k1": 1, "e": "1970-01-01T00:00:00Z"}]',
            b'[{"k1": "a"}]',
            b'[{"e": "1970-01-01"}]',
            b'[{"e": "1970-01-01T00:00:00Z", "k9": 1}]',
            b'[{"e": "1970-01-01T00:00:00Z", "n": 9223372036854775808}]',
            b'[{"e": "1970-01-01T00:00:00Z", "s": "\\ud800"}]',
        ):
            with pytest.raises(DataError):
                here.store.prepare("rows", "1", events)
        assert not list(event_log.deliveries(here.folder / "events"))


def as_arrow(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as out:
        out.write_table(table)
    return sink.getvalue().to_pybytes()


def test_events_in_arrow_are_read_as_the_same_in_json() -> None:
    wanted = [{**row(id=f"{i}", v=i, k1="a", k2=1, k3=True, k4=2, e=3 + i), **filled(i)} for i in range(9)]
    reader = EventReader(sw.Source("rows", pa.table({}), event_time="e", available_at="a"), schema_of())
    table = pa.Table.from_pylist(wanted, schema=SCHEMA)
    assert reader.read(as_arrow(table)).equals(reader.read(as_events(wanted)))
    # of like types, in another order, and without columns that are null
    narrow = table.select([name for name in reversed(SCHEMA.names) if name not in ("a", "d")])
    narrow = narrow.set_column(0, "s", narrow["s"].cast(pa.large_string()).dictionary_encode())
    narrow = narrow.set_column(narrow.column_names.index("v"), "v", narrow["v"].cast(pa.int8()))
    assert reader.read(as_arrow(narrow)).equals(reader.read(as_events(wanted)))


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"e": pa.array([None], INSTANT)}, "Event 0 has no time."),
        ({"e": pa.array([1], pa.timestamp("us"))}, "An event's value does not fit its column."),
        ({"e": pa.array(["1970-01-01T00:00:00Z"])}, "An event's value does not fit its column."),
        ({"e": pa.array([1], INSTANT), "small": pa.array([1 << 20])}, "An event's value does not fit its column."),
        ({"e": pa.array([1], INSTANT), "n": pa.array([1.0])}, "An event's value does not fit its column."),
        ({"e": pa.array([1], INSTANT), "m": pa.array([Decimal("0.001")])}, "An event's value does not fit its column."),
        ({"e": pa.array([1], INSTANT), "amuont": pa.array([1.0])}, "Source 'rows' has no column 'amuont'."),
    ],
)  # fmt: skip
def test_events_in_arrow_that_are_not_the_sources_are_refused(
    columns: dict[str, pa.Array], said: str
) -> None:
    reader = EventReader(sw.Source("rows", pa.table({}), event_time="e", available_at="a"), schema_of())
    with pytest.raises(DataError) as refused:
        reader.read(as_arrow(pa.table(columns)))
    assert refused.value.what == said
    with pytest.raises(DataError, match="The events cannot be read"):
        reader.read(as_arrow(pa.table(columns))[:-40])


def test_a_delivery_that_cannot_be_prepared_is_refused_alone() -> None:
    with world() as here:
        assert here.store is not None
        good, bad, other = (here.store.prepare("rows", key, as_events([row(k1="a")])) for key in "gbo")
        written = here.store._written_now()["rows"]
        prepare = written.preparer.prepare

        def prepared(raw: pa.Table) -> pa.Table:
            if raw.num_rows != 1 or raw is bad.raw:
                raise duckdb.ConversionException("as for a value that no schema foresees")
            return prepare(raw)

        written.preparer.prepare = prepared  # type: ignore[method-assign]
        answers = here.store.commit([good, bad, other])
        assert answers[0] == Taken(1, False, 1)
        assert isinstance(answers[1], duckdb.Error)
        assert answers[2] == Taken(1, False, 2)


def test_rows_of_one_commit_lie_as_if_they_had_come_one_by_one() -> None:
    # many rows of one entity at once, before, between and after those that are there, equal times among them
    for order in (
        [5, 1, 9, 5, 5, 3, 5, 7, 2, 5],
        [9, 8, 7, 6, 5, 4, 3, 2, 1, 0],
        [1, 1, 1, 1, 1, 1, 1, 2, 2],
    ):
        with world("by_arrival", [SUM_LONG]) as here, world("by_arrival", [SUM_LONG]) as other:
            made = [row(id=str(i), k1="a", e=e, x=i / 3, s=f"{i}") for i, e in enumerate(order)]
            for part, rows_of_it in enumerate((made[:4], made[4:])):
                here.clock.time += 5
                other.clock.time = here.clock.time
                tell(here, f"{part}", rows_of_it)
                assert other.store is not None
                for number, one in enumerate(rows_of_it):
                    other.take((f"{part} {number}", [one]))
            here.check(here.moment())
            other.clock.time = here.clock.time = 40
            assert count_of(here, "a") == count_of(other, "a")


def test_the_cutover_is_recorded_once() -> None:
    with world(cutover=10) as here:
        assert here.store is not None
        here.clock.time = 20
        here.store.fill(here.engine)
        assert (here.folder / "cutover").read_text() == "10"
        with pytest.raises(StoreError, match="recorded already"):
            here.store.fill(here.engine, cutover=20)


def test_a_fill_that_fails_records_no_cutover() -> None:
    with world(cutover=10) as here:
        here.close()
        shutil.rmtree(here.folder)
        engine, here.engine = here.engine, DuckDBEngine(threads=1)
        here.engine.close()
        with pytest.raises(Exception, match="closed"):
            here.open()
        assert not (here.folder / "cutover").exists()
        here.engine, here.cutover = engine, 12
        here.open()
        assert (here.folder / "cutover").read_text() == "12"


def test_a_read_of_one_row_compiles_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from numba.core.dispatcher import Dispatcher

    compiled: list[str] = []
    for name in ("compile", "recompile"):
        monkeypatch.setattr(Dispatcher, name, lambda self, *_, **__: compiled.append(self.py_func.__name__))
    with world("append_only", every_call()) as here:
        tell(here, "1", [row(k1="a", **filled(1)), row(k1="a", **filled(2)), row(k1="", **filled(3))])
        assert here.store is not None
        for key in ("a", "", LONG, "ü\u2028"):
            with here.store.snapshot() as snapshot:
                snapshot.aggregates(here.store.groupings, {"k1": [key]}, here.clock.time + 5)
    assert not compiled


def test_a_store_of_another_boot_is_filled_anew() -> None:
    files = [row(k1="a", a=1)]
    with world(files=files) as here:
        tell(here, "1", [row(k1="a")])
        here.close()
        (here.folder / "boot").write_text("another boot")
        for damaged in (here.folder / "index").glob("data*"):
            damaged.write_bytes(b"what a power cut leaves of pages that were never written" * 1000)
        here.open()
        assert count_of(here, "a") == 2
        here.check(here.moment())
        assert here.take(("1", [row(k1="a")])) == [Taken(1, True, 1)]


def test_what_a_snapshot_lacks_became_readable_no_earlier_than_the_first_delivery_it_did_not_see() -> None:
    with world() as here:
        for number in range(3):
            here.clock.time = 20 + 10 * number
            tell(here, str(number), [row(k1="a")])
        unseen = event_log.first_unseen(here.folder / "events", np.array([0, 1, 2, 3, 9]))
        assert unseen.tolist() == [20, 30, 40, 2**63 - 1, 2**63 - 1]


def test_a_replay_has_nothing_that_a_snapshot_lacks() -> None:
    with world("append_only", replay=True) as here:
        here.take(("1", [row(k1="a", a=12)]), ("2", [row(k1="a", a=13)]))
        unseen = event_log.first_unseen(here.folder / "events", np.array([0, 1, 2]))
        assert unseen.tolist() == [2**63 - 1] * 3


def test_a_reader_that_was_killed_holds_nothing_back() -> None:
    with world() as here:
        here.close()
        script = (
            "import lmdb, os, signal, sys; reader = lmdb.open(sys.argv[1], max_dbs=8, max_readers=1024).begin();"
            "os.kill(os.getpid(), signal.SIGKILL)"
        )
        ended = subprocess.run([sys.executable, "-c", script, str(here.folder / "index")], check=False)
        assert ended.returncode == -9
        store = here.open()
        assert "no active readers" in store.index._env.readers()


WRITERS = '''
"""Two writers of one store that are killed at random moments, again and again; forked, so that a start costs little."""
import os, random, signal, sys, time
from pathlib import Path
import msgspec, pyarrow as pa
from sameworld.asof.plan import groupings_of
from sameworld.engines.duckdb import DuckDBEngine
from sameworld.engines.interface import Asked, Rows
from sameworld.stores.online import OnlineStore, Taken
sys.path[:0] = [sys.argv[3], str(Path(sys.argv[3]).parent)]
import test_online as tests

folder, kills = Path(sys.argv[1]), int(sys.argv[2])

def write(writer, life):
    """Send one delivery after another; the first is the last that the life before was not told of."""
    source = tests.counted_source()
    store = OnlineStore(folder / "state", groupings_of(tests.counted(source)), {source.content: tests.schema_of()}, durability="process")
    store.fill(DuckDBEngine(threads=1))
    told = folder / f"told-{writer}"
    number = len(told.read_text().split()) if told.exists() else 0
    out = os.open(told, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    while True:
        key = f"{writer}-{number}"
        # the events of a key are always the same
        taken = store.commit([store.prepare("rows", key, tests.as_events(tests.rows_of(writer, number)))])[0]
        assert isinstance(taken, Taken), taken
        os.write(out, f"{key}\\n".encode())
        number += 1

def start(writer, life):
    child = os.fork()
    if child:
        return child
    try:
        write(writer, life)
    except BaseException:
        import traceback
        (folder / "failed").write_text(traceback.format_exc())
    os._exit(1)

def told():
    return sum(path.stat().st_size for path in folder.glob("told-*"))

random.seed(5)
living = {writer: start(writer, -1) for writer in (0, 1)}
for kill in range(kills):
    if kill % 3:  # else it may be killed while it starts
        before, until = told(), time.monotonic() + 20
        while told() == before and time.monotonic() < until:
            time.sleep(0.001)
    time.sleep(random.uniform(0, 0.1))
    writer = kill % 2
    os.kill(living[writer], signal.SIGKILL)
    os.waitpid(living.pop(writer), 0)
    assert not (folder / "failed").exists(), (folder / "failed").read_text()
    if kill < kills - 2:
        living[writer] = start(writer, kill)
'''


def counted_source() -> sw.Source:
    files = [row(id="f", v=0, k1="0", a=1, x=0.5)]
    return sw.Source(
        "rows",
        pa.Table.from_pylist(files, schema=SCHEMA),
        event_time="e",
        available_at="a",
        **NAMED["by_version"],
    )


def counted(source: sw.Source) -> list[Aggregate]:
    return [source.by("k1").sum("x"), source.by("k1").count(), source.by("k2", "k1").last("n")]


def rows_of(writer: int, number: int) -> list[Row]:
    """A delivery's rows: a new fact, and a correction of one before that moves it."""
    corrected = number * 7919 % (number + 1)
    return [
        row(id=f"{writer}-{number}", v=0, k1=str(number % 3), k2=0, x=0.1 * number, n=number, e=number),
        row(
            id=f"{writer}-{corrected}",
            v=number + 1,
            k1=str(number % 4),
            k2=0,
            x=0.3 * number,
            n=number,
            e=number,
        ),
    ]


@pytest.mark.slow
def test_what_was_acknowledged_survives_writers_killed_at_any_moment(tmp_path: Path) -> None:
    # given two writers, killed in turn, each life going on with what the one before was not told of
    kills = int(os.environ.get("KILLS", "30"))
    script = tmp_path / "writers.py"
    script.write_text(WRITERS)
    subprocess.run(
        [sys.executable, str(script), str(tmp_path), str(kills), str(Path(__file__).parent)],
        check=True,
        timeout=240,
    )
    acknowledged = [key for told in tmp_path.glob("told-*") for key in told.read_text().split()]
    assert len(acknowledged) > kills
    # when the next one opens the store
    source = counted_source()
    groupings = groupings_of(counted(source))
    store = OnlineStore(tmp_path / "state", groupings, {source.content: schema_of()}, durability="process")
    assert not store.missing()
    assert isinstance(store.commit([store.prepare("rows", "the last", b"[]")])[0], Taken)
    # then everything acknowledged is in the log once, in rising order
    log = list(event_log.deliveries(tmp_path / "state" / "events"))
    keys = [delivery.key for _, delivery in log]
    assert len(keys) == len(set(keys))
    assert set(acknowledged) <= set(keys)
    assert len(set(keys) - set(acknowledged)) <= 3  # one each writer was not told of, and the last
    stamps = [delivery.stamp for _, delivery in log]
    assert stamps == sorted(set(stamps))
    # and the index has what the log says, bit for bit
    engine = DuckDBEngine(threads=1)
    cutover = int((tmp_path / "state" / "cutover").read_text())
    logged = event_log.raw_rows(tmp_path / "state" / "events", {"rows": EventReader(source, schema_of())})
    fields = {"k1": [str(k) for k in range(4)], "k2": [0] * 4}
    with store.snapshot() as snapshot:
        t = snapshot.moment()
        got = snapshot.aggregates(groupings, fields, t)
    at = np.full(4, t, np.int64)
    rows = {source.content: Rows(source.data, cutover, logged["rows"])}
    wanted = engine.aggregates(
        groupings, {source.content: schema_of()}, Asked(pa.table(fields), at, at), rows=rows, world="as_of"
    )
    assert {name: [bits(v) for v in column.to_pylist()] for name, column in got.items()} == {
        name: [bits(v) for v in column.to_pylist()] for name, column in wanted.items()
    }
    store.close()
    engine.close()
    print(f"{len(acknowledged)} acknowledged deliveries, {kills} kills")
