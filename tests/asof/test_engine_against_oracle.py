"""Every engine gives the oracle's bits, for every aggregation in the table and histories made to break things."""

from __future__ import annotations

import datetime
import zoneinfo
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from every_aggregation import (
    CASES,
    COLUMNS,
    LARGEST,
    asked_of_oracle,
    bits,
    calls,
    plain,
    type_of,
)
from histories import CONDITION, KEYS, SCHEMA, VERSIONED, rows, ties_of, times, versions
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

Row = dict[str, Any]
WINDOWS = (Window(), Window("3us"), Window("50us"), Window("4us", ahead=True))

entities = st.tuples(
    st.sampled_from(["a", "a", "a", "b", "ü\u2028", "", "unknown", None]),
    st.sampled_from([0, 1, None]),
    st.booleans(),
)
askings = st.sampled_from(["features", "labels", "any"])
Moment = tuple[tuple[Any, ...], int, int]


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


def said_by_oracle(
    aggregate: Aggregate, told: Sequence[oracle.Version], asked: Sequence[Moment]
) -> dict[str, list[Any]] | None:
    """Give column -> bits of its values; None when a sum does not fit."""
    said: dict[str, list[Any]] = {}
    try:
        for column, window in zip(aggregate.columns, aggregate.windows, strict=True):
            start, end = window.bounds
            said[column] = [
                bits(
                    oracle.value_at(
                        told,
                        aggregate.operation,
                        key[: len(aggregate.keys)],
                        at,
                        start=start,
                        end=end,
                        as_of=as_of,
                        corrections_within=aggregate.source.corrections_within_microseconds,
                        **asked_of_oracle(aggregate),
                    )
                )
                for key, at, as_of in asked
            ]
    except AsOfError:
        return None
    return said


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
    engine = DuckDBEngine(threads=threads)
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
    engine.close()


def source_of(history: Sequence[Row], versioned: str, within: str | None = None) -> sw.Source:
    table = pa.Table.from_pylist(list(history), schema=SCHEMA)
    return sw.Source(
        "rows", table, event_time="e", available_at="a", corrections_within=within, **VERSIONED[versioned]
    )


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


def row(event: int, available: int | None = None, **given: Any) -> Row:
    """A row of entity a; what is not given is null."""
    return dict.fromkeys(SCHEMA.names) | {
        "k1": "a",
        "e": event,
        "a": event if available is None else available,
        **given,
    }


def all_calls(source: sw.Source, over: Sequence[Window] = (Window(),)) -> list[Aggregate]:
    """Every aggregation of every family, over the family's first column."""
    arguments = {"prior": 0.5, "weight": 2.0, "n": 3}
    made: list[Aggregate] = []
    for operation, family in CASES:
        column = [next(iter(COLUMNS[family]))] if family else []
        given = {name: arguments.get(name, "y") for name in AGGREGATIONS[operation].arguments}
        made.append(getattr(source.by("k1"), operation)(*column, **given, over=over))
    return made


def placed(number: int) -> Row:
    """Values in every column, different for different numbers."""
    return {
        "n": number * 7 - 3, "huge": number, "small": number, "unsigned": number, "x": number / 7, "y": number * 0.1, "half": number * 0.5,
        "b": number % 2 == 0, "m": Decimal(number * 11 - 40).scaleb(-2), "tiny": Decimal(number).scaleb(-18), "whole": Decimal(number),
        "w": number * 1000 + 1, "s": chr(0x044F - number * 7 % 31),
    }  # fmt: skip


HISTORIES: dict[str, list[Row]] = {
    "late": [row(3, 9, **placed(1)), row(5, 6, **placed(2)), row(1, 12, **placed(3))],
    "corrected": [row(3, id="p", v=1, **placed(1)), row(3, 6, id="p", v=2, **placed(2)), row(4, id="q", v=1, **placed(3))],
    "corrected twice at once": [row(3, 5, id="p", v=v, **placed(v)) for v in (2, 0, 1)],
    "a late old version": [row(3, id="p", v=2, **placed(1)), row(2, 8, id="p", v=1, **placed(2))],
    "moved to another entity": [row(3, id="p", v=1, **placed(1)), row(3, 6, id="p", v=2, **(placed(2) | {"k1": "b"}))],
    "moved there and back": [
        row(3, id="p", v=1, **placed(1)),
        row(3, 5, id="p", v=2, **(placed(2) | {"k1": "b"})),
        row(2, 8, id="p", v=3, **placed(3)),
    ],
    "deleted": [row(3, id="p", v=1, **placed(1)), row(3, 6, id="p", v=2, d=True)],
    "deleted before it came": [row(3, 4, id="p", v=2, d=True), row(3, 6, id="p", v=1, **placed(1))],
    "revived": [
        row(3, id="p", v=1, **placed(1)),
        row(3, 5, id="p", v=2, d=True),
        row(4, 8, id="p", v=3, **placed(2)),
    ],
    "of nobody, then of somebody": [row(3, id="p", v=1, k1=None), row(3, 6, id="p", v=2, **placed(1))],
    "tied": [row(3, 5, **placed(number)) for number in (4, 1, 3, 2)],
    "told twice": [row(3, 5, id="p", v=1, **placed(1))] * 3,
    "nulls": [row(3), row(4, 6), row(5)],
    "one value among nulls": [row(2), row(3, **placed(5)), row(4)],
    "alike": [row(2 + number, **placed(5)) for number in range(4)],
    "not a number": [row(e, **(placed(1) | {"x": x})) for e, x in ((2, 1.0), (3, float("nan")), (5, -float("nan")), (6, 2.0))],
    "infinite": [row(e, **(placed(1) | {"x": x, "y": x})) for e, x in ((2, 1.0), (3, float("inf")), (5, float("-inf")), (7, 2.0))],
    "zeros": [row(e, **(placed(1) | {"x": x, "y": x})) for e, x in ((2, -0.0), (3, 0.0), (5, -0.0))],
    "cancelling": [row(e, **(placed(1) | {"x": x})) for e, x in ((2, 1e15), (3, 0.1), (4, -1e15), (5, 1e-3), (6, 1e300), (8, -1e300))],
    "the largest floats": [row(e, **(placed(1) | {"x": 1.7976931348623157e308, "y": 5e-324})) for e in (2, 3, 5)],
    "the smallest floats": [row(e, **(placed(1) | {"x": x})) for e, x in ((2, 5e-324), (3, 1e-323), (5, -5e-324), (6, 2e-162))],
    "integers at the edges": [row(e, **(placed(1) | {"n": n})) for e, n in ((2, LARGEST), (3, -(2**63)), (5, -1), (6, LARGEST - 1))],
    "an integer sum beyond int64": [row(e, **(placed(1) | {"n": n})) for e, n in ((2, LARGEST), (3, 1), (8, -5))],
    "a decimal sum beyond 64 bits": [
        row(e, **(placed(1) | {"m": Decimal("9999999999999999.99")})) for e in (1, 2, 3, 4, 5, 6, 7, 8, 9, 10)
    ],
    "nothing": [],
}  # fmt: skip


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
