"""Every engine gives the oracle's bits, for every aggregation in the table and histories made to break things."""

from __future__ import annotations

import datetime
import zoneinfo
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from every_aggregation import (
    CASES,
    COLUMNS,
    bits,
    calls,
    plain,
    type_of,
)
from histories import (
    CONDITION,
    HISTORIES,
    KEYS,
    SCHEMA,
    VERSIONED,
    Moment,
    Row,
    all_calls,
    one_engine,
    placed,
    row,
    rows,
    said_by_oracle,
    source_of,
    ties_of,
    times,
    versions,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import sameworld as sw
from sameworld.asof.aggregations import AGGREGATIONS
from sameworld.asof.plan import groupings_of
from sameworld.asof.prepared import World
from sameworld.definitions.feature import Aggregate
from sameworld.definitions.windows import Window
from sameworld.engines.duckdb import DuckDBEngine
from sameworld.engines.interface import Asked
from sameworld.errors import AsOfError
from sameworld.testing import oracle

WINDOWS = (Window(), Window("3us"), Window("50us"), Window("4us", ahead=True))

entities = st.tuples(
    st.sampled_from(["a", "a", "a", "b", "ü\u2028", "", "unknown", None]),
    st.sampled_from([0, 1, None]),
    st.booleans(),
)
askings = st.sampled_from(["features", "labels", "any"])


@st.composite
def moments(draw: st.DrawFn) -> list[Moment]:
    """Entities with `at` and `as_of`: the same, as features ask; as_of constant and later, as labels do; or any, so that at falls while as_of rises."""
    asked = draw(st.lists(st.tuples(entities, times, times), min_size=1, max_size=7))
    match draw(askings):
        case "features":
            return [(key, at, at) for key, at, _ in asked]
        case "labels":
            known = draw(st.integers(12, 16))
            return [(key, at, known) for key, at, _ in asked]
        case _:
            return asked


def compare(
    source: sw.Source,
    aggregates: Sequence[Aggregate],
    history: Sequence[Row],
    asked: Sequence[Moment],
    *,
    world: World = "as_of",
    threads: int = 1,
) -> None:
    """Compare what the engine gives with what the oracle says."""
    engine = one_engine(threads)
    schema = engine.describe(source.data, "rows")
    ties = ties_of(engine, source, schema, (), source.data)
    key_table = pa.table(
        {name: pa.array([key[i] for key, _, _ in asked], kind) for i, (name, kind) in enumerate(KEYS.items())}
    )
    at, as_of = (np.array([moment[i] for moment in asked], np.int64) for i in (1, 2))

    def got_of(some: Sequence[Aggregate]) -> dict[str, pa.Array]:
        return engine.aggregates(
            groupings_of(some), {source.content: schema}, Asked(key_table, at, as_of), rows={}, world=world
        )

    expected: dict[str, list[Any]] = {}
    fitting: list[Aggregate] = []
    for aggregate in aggregates:
        told = versions(source, aggregate, history, ties)
        if world == "event_time":
            told = oracle.joined_by_event_time(
                told, corrections_within=source.corrections_within_microseconds
            )
        said = said_by_oracle(aggregate, told, asked)
        if said is None:
            with pytest.raises(AsOfError, match="does not fit 64 bits"):
                got_of([aggregate])
        else:
            fitting.append(aggregate)
            expected |= said
    got = got_of(fitting)
    for aggregate in fitting:
        for column in aggregate.columns:
            assert got[column].type == type_of(aggregate), column
            assert [bits(value) for value in plain(got[column])] == expected[column], column


@pytest.mark.parametrize("operation", AGGREGATIONS)
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_every_value_equals_the_oracle_bit_for_bit(operation: str, data: st.DataObject) -> None:
    history = data.draw(st.lists(rows, max_size=14), "history")
    told_again = data.draw(st.lists(st.integers(0, 13), max_size=3), "told again")
    history += [history[place] for place in told_again if place < len(history)]
    versioned = data.draw(st.sampled_from(list(VERSIONED)), "versioned")
    within = data.draw(st.one_of(st.none(), st.integers(1, 9).map("{}us".format)), "corrections within")
    source = source_of(history, versioned, None if versioned == "append_only" else within)
    keys = data.draw(st.sampled_from([("k1",), ("k1",), ("k1", "k2"), ("k1", "k2", "k3")]), "keys")
    asked = data.draw(moments(), "moments")
    world = data.draw(st.sampled_from(["as_of", "as_of", "event_time"]), "world")
    aggregates = [
        getattr(grouped, operation)(*columns, **given, over=WINDOWS)
        for family in sorted(AGGREGATIONS[operation].columns) or [None]
        for _, columns, given in [data.draw(calls(operation, family), "call")]
        for grouped in (source.by(*keys), source.where(CONDITION).by(*keys))
    ]
    compare(source, aggregates, history, asked, world=world)


def test_every_family_of_columns_that_an_aggregation_takes_has_a_column_here() -> None:
    assert {family for _, family in CASES} - {None} == set(COLUMNS)


@pytest.mark.parametrize("world", ["as_of", "event_time"])
@pytest.mark.parametrize("history", HISTORIES)
def test_every_aggregation_of_a_named_history_equals_the_oracle(history: str, world: World) -> None:
    told = HISTORIES[history]
    source = source_of(told, "by_version" if any(r["id"] for r in told) else "append_only")
    windows = (Window(), Window("3us"), Window("4us", ahead=True))
    keys = [("a", None, None), ("b", None, None), ("nobody", None, None), (None, None, None)]
    # At every edge of every row, twice, and once more as a label asks.
    asked = [(key, t, t) for key in keys for t in (*range(1, 15), 6, 15)]
    asked += [(keys[0], t, 13) for t in range(12)]
    compare(source, all_calls(source, windows), told, asked, world=world)


def test_moments_whose_windows_go_back_while_what_is_known_goes_forward_equal_the_oracle() -> None:
    random = np.random.default_rng(4)
    told = [
        row(
            int(random.integers(0, 300)),
            int(random.integers(0, 400)),
            id=f"f{random.integers(0, 120)}",
            v=int(random.integers(0, 4)),
            d=bool(random.random() < 0.05),
            **placed(int(random.integers(1, 30))),
        )
        for _ in range(250)
    ]
    source = source_of(told, "by_version")
    known = np.sort(random.integers(0, 420, 12))
    asked = [(("a", None, None), 320 - 25 * i, int(as_of)) for i, as_of in enumerate(known)]
    compare(source, all_calls(source, (Window(), Window("60us"), Window("40us", ahead=True))), told, asked)


@pytest.mark.parametrize("day", [datetime.date(2024, 3, 31), datetime.date(2024, 10, 27)])
def test_naive_times_on_days_when_clocks_change_equal_the_oracle(day: datetime.date) -> None:
    zone = zoneinfo.ZoneInfo("Europe/Berlin")
    midnight = datetime.datetime.combine(day, datetime.time(), datetime.UTC)
    instants = [midnight + datetime.timedelta(minutes=20 * step) for step in range(-6, 12)]
    # The hour that clocks show twice does not say which of the two it is.
    shown = [instant.astimezone(zone).replace(tzinfo=None) for instant in instants]
    kept = [
        (instant, clock)
        for instant, clock in zip(instants, shown, strict=True)
        if clock.replace(tzinfo=zone, fold=0).utcoffset() == clock.replace(tzinfo=zone, fold=1).utcoffset()
    ]
    told = []
    for number, (instant, _) in enumerate(kept):
        event = int(instant.timestamp()) * 1_000_000
        told.append(row(event, event + 600_000_000, **placed(number)))
    naive = pa.array([clock for _, clock in kept], pa.timestamp("us"))
    table = pa.Table.from_pylist(told, schema=SCHEMA)
    table = table.set_column(table.column_names.index("e"), "e", naive).drop_columns(["a"])
    source = sw.Source("rows", table, event_time="e", available_at=sw.delay("10m"), timezone="Europe/Berlin")
    asked = [(("a", None, None), r["e"] + plus, r["e"] + plus) for r in told for plus in (0, 600_000_001)]
    windows = (Window(), Window("1h"), Window("1d"), Window("2h", ahead=True))
    compare(source, all_calls(source, windows), told, asked)


def test_the_number_of_threads_and_the_order_of_the_file_change_nothing() -> None:
    random = np.random.default_rng(5)
    told = [
        row(
            int(random.integers(0, 60)),
            int(random.integers(0, 90)),
            id=f"f{random.integers(0, 150)}",
            v=int(random.integers(0, 3)),
            **(placed(int(random.integers(1, 30))) | {"k1": f"k{random.integers(0, 40)}"}),
        )
        for _ in range(300)
    ]
    keys = pa.table({"k1": [f"k{i % 42}" for i in range(500)]})
    at = np.arange(500, dtype=np.int64) % 97
    given: list[dict[str, list[Any]]] = []
    for threads, order in ((1, range(300)), (3, random.permutation(300)), (2, range(299, -1, -1))):
        source = source_of([told[i] for i in order], "by_version")
        engine = DuckDBEngine(threads=threads)
        schemas = {source.content: engine.describe(source.data, "rows")}
        groupings = groupings_of(all_calls(source, (Window(), Window("20us"))))
        got = engine.aggregates(groupings, schemas, Asked(keys, at, at), rows={}, world="as_of")
        given.append({name: [bits(value) for value in plain(column)] for name, column in got.items()})
        engine.close()
    assert given[0] == given[1] == given[2]
