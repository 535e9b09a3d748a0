"""An explanation gives the kernel's value, puts every row version of the entity into exactly one standing, and agrees with the oracle about each."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from histories import CONDITION, INSTANT, SCHEMA, VERSIONED, one_engine, rows, ties_of, versions
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_world import UNTIL, SmallWorld

import sameworld as sw
from sameworld.definitions.feature import Aggregate, Feature
from sameworld.definitions.windows import Window
from sameworld.engines.duckdb import DuckDBEngine
from sameworld.engines.interface import Asked
from sameworld.errors import DataError, DefinitionError, Problems
from sameworld.evaluation.explain import explain
from sameworld.evaluation.explanation import (
    STANDINGS,
    ColumnExplanation,
    Explanation,
    RowVersion,
    definition_of,
)
from sameworld.testing import oracle

SECOND = 1_000_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
WINDOWS = (Window(), Window("3us"), Window("50us"), Window("4us", ahead=True))
# Few entities and few instants, so that rows meet.
instants = st.integers(0, 8)
dense = st.tuples(
    rows,
    st.sampled_from(["a", "a", "a", "b", None]),
    st.sampled_from([None, *range(9)]),
    st.sampled_from([None, *range(9)]),
    st.sampled_from(["p", "p", "p", "q", None]),
).map(lambda drawn: drawn[0] | dict(zip(("k1", "e", "a", "id"), drawn[1:], strict=True)))
COLUMN_OF = {"count": None, "age": None, "sum": "x", "mean": "n", "min": "x", "max": "n", "last": "s"}


class Untrained:
    def fit(self, *_: Any) -> None: ...

    def predict(self, *_: Any) -> None: ...


def model_of(features: dict[str, Feature], **fields: pa.DataType) -> sw.Model:
    """A model whose requests have these fields and whose moments are none."""
    asked = {"asked_at": INSTANT, **fields}
    moments = pa.table({name: pa.array([], kind) for name, kind in asked.items()})
    aggregate = sw.Source("y", "none.parquet", event_time="e", available_at="a").by("k1").count()
    return sw.Model(
        "m",
        moments=sw.Moments(moments, at="asked_at"),
        features=features,
        label=sw.Label(aggregate, within="1h"),
        estimator=Untrained(),
    )


def same(first: Any, second: Any) -> bool:
    both = isinstance(first, float) and isinstance(second, float)
    return (both and math.isnan(first) and math.isnan(second)) or (
        first == second and type(first) is type(second)
    )


def names_of(version: oracle.Version) -> tuple[Any, ...]:
    return version.event_time, version.available_at, version.fact, repr(version.value)


def names_in(row: RowVersion) -> tuple[Any, ...]:
    return row.event_time, row.available_at, row.fact, repr(row.value)


@pytest.mark.parametrize("versioned", VERSIONED)
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    history=st.integers(0, 12).flatmap(lambda size: st.lists(dense, min_size=size, max_size=size)),
    repeated=st.lists(st.integers(0, 13), max_size=3),
    key=st.sampled_from(["a", "a", "b", "unknown"]),
    at=instants,
    as_of=st.one_of(st.none(), instants),
    operation=st.sampled_from(sorted(COLUMN_OF)),
    filtered=st.booleans(),
)
def test_an_explanation_agrees_with_the_oracle(
    versioned: str,
    history: list,
    repeated: list,
    key: str,
    at: int,
    as_of: int | None,
    operation: str,
    filtered: bool,
) -> None:
    history = history + [history[place] for place in repeated if place < len(history)]
    table = pa.Table.from_pylist(history, schema=SCHEMA)
    source = sw.Source("rows", table, event_time="e", available_at="a", **VERSIONED[versioned])
    grouped = (source.where(CONDITION) if filtered else source).by("k1")
    column = COLUMN_OF[operation]
    method = getattr(grouped, operation)
    aggregate: Aggregate = method(column, over=WINDOWS) if column else method(over=WINDOWS)
    feature = aggregate if operation != "last" else None
    features: dict[str, Feature] = {"f": feature} if feature else {}
    for window in WINDOWS if not feature else ():
        features[f"f_{window.label}"] = method(column, over=window).category()
    model = model_of(features, k1=pa.string())
    engine = one_engine()
    schema = engine.describe(table, "rows")
    all_versions = versions(source, aggregate, history, ties_of(engine, source, schema, ("k1",), table))

    columns = [
        column
        for name in features
        for column in explain(
            model, name, entity={"k1": key}, at=at, as_of=as_of, engine=engine, rows=None
        ).columns
    ]

    assert [explained.window for explained in columns] == list(WINDOWS)
    for explained in columns:
        check_against_oracle(explained, all_versions, operation, key, at, at if as_of is None else as_of)


def check_against_oracle(
    explained: ColumnExplanation,
    history: Sequence[oracle.Version],
    operation: str,
    key: str,
    at: int,
    as_of: int,
) -> None:
    start, end = explained.window.bounds

    def value(at: int, as_of: int) -> oracle.Value:
        return oracle.value_at(history, operation, (key,), at, start=start, end=end, as_of=as_of)

    of_entity = [version for version in history if version.key == (key,)]
    by_standing = {s: [row for row in explained.rows if row.standing == s] for s in STANDINGS}
    # Every row version of the entity is in exactly one standing.
    assert Counter(map(names_in, explained.rows)) == Counter(map(names_of, of_entity))
    assert {s: len(found) for s, found in by_standing.items() if found} == dict(explained.counts)
    # Those used are those that live in the window, as the oracle has it.
    inside = [
        version
        for version in of_entity
        if version.event_time is not None
        and (start is None or version.event_time >= at + start)
        and version.event_time < at + end
        and version.holds
        and (version.value is not None or operation in ("count", "age"))
        and not version.deleted
    ]
    living = [version for version in oracle.living(history, as_of) if any(version is one for one in inside)]
    assert Counter(map(names_in, by_standing["used"])) == Counter(map(names_of, living))
    # And the others in the window are late, or ended.
    late = [one for one in inside if one.available_at is not None and one.available_at >= as_of]
    ended = [*by_standing["superseded"], *by_standing["deleted"]]
    for row in ended:
        assert row.superseded_by is not None
        assert row.superseded_by.at < as_of
        assert row.superseded_by.deleted == (row.standing == "deleted")
    assert len(by_standing["not_yet_readable"]) + sum((r.available_at or 0) >= as_of for r in ended) == len(
        late
    )
    for row in explained.rows:
        by = row.superseded_by
        if by is not None:
            (then,) = [
                version for version in oracle.living(history, by.at + 1) if version.fact == row.fact
            ] or [None]
            assert by.deleted == (then is None)
            assert then is None or (then.available_at == by.at and same(then.value, by.value))
    # The values are the oracle's: then, once the late rows had come, and at every instant of the timeline.
    assert same(explained.value, value(at, as_of))
    if explained.known_later is not None:
        assert same(explained.known_later[1], value(at, explained.known_later[0]))
        assert explained.known_later[0] > as_of
    timeline = explained.timeline
    assert not timeline.cut
    assert timeline.start <= as_of < timeline.end
    assert timeline.points[0][0] == timeline.start
    known = [instant for instant, _ in timeline.points]
    assert known == sorted(set(known))
    between = range(max(timeline.start, -80), min(timeline.end, 160) + 1)
    assert timeline.sampled == (operation == "age" and not timeline.of_knowledge)
    for instant in known if timeline.sampled else {*known, *between}:
        expected = value(at if timeline.of_knowledge else instant, instant)
        assert same(timeline.at(instant), expected), (instant, timeline)
    assert same(timeline.at(as_of), explained.value)


# A case that can be told


EVENTS = [  # minutes before and after noon: happened, readable, id, revision, delay, withdrawn
    (-200, -190, "f0", 1, 9.0, False),
    (-170, -160, "f1", 1, 2.0, False),
    (-100, -90, "f2", 1, 5.0, False),
    (-80, -20, "f3", 1, 7.0, False),
    (-80, -10, "f3", 2, 5.0, False),
    (-60, 14, "f4", 1, 5.5, False),
    (-50, -40, "f5", 1, 1.0, False),
    (-50, -30, "f5", 2, None, True),
    (-40, -30, "f6", 1, None, False),
    (-30, None, "f7", 1, 3.0, False),
    (None, -20, "f8", 1, 3.0, False),
    (-20, -10, "f9", 1, -4.0, False),
    (0, 1, "f10", 1, 8.0, False),
    (-100, 120, "f2", 2, 6.0, False),
]
NOON = 1_380_628_800 * SECOND


def told(**options: Any) -> Explanation:
    def instants(minutes: Sequence[int | None]) -> pa.Array:
        return pa.array([None if m is None else NOON + m * MINUTE for m in minutes], INSTANT)

    happened, readable, ids, revisions, delays, withdrawn = zip(*EVENTS, strict=True)
    table = pa.table(
        {
            "origin": ["JFK"] * len(EVENTS),
            "happened": instants(happened),
            "readable": instants(readable),
            "id": ids,
            "revision": revisions,
            "delay": pa.array(delays, pa.float64()),
            "withdrawn": withdrawn,
        }
    )
    source = sw.Source(
        "flights", table, event_time="happened", available_at="readable", id="id", version="revision", deleted="withdrawn"
    )  # fmt: skip
    delays_of = source.where("delay IS NULL OR delay > 0").by("origin")
    model = model_of({"delay": delays_of.mean("delay", over="3h")}, origin=pa.string())
    return explain(
        model, "delay", **({"entity": {"origin": "JFK"}, "at": NOON, "engine": DuckDBEngine()} | options)
    )


def test_a_value_is_told_in_words() -> None:
    (column,) = told().columns
    assert column.verdict == (
        "At 2013-10-01 12:00:00Z the value was 4.0 (3 of the entity's 14 rows). 1 row existed but became readable only 14 min later; "
        "with it the value would have been 4.375. 1 had been superseded and 1 had been deleted by then. "
        "1 row used here was corrected or withdrawn later, the first 2 h after the moment. A join on event time would have said 4.3."
    )
    assert column.counts == {
        "used": 3,
        "not_yet_readable": 2,
        "superseded": 1,
        "deleted": 1,
        "before_window": 1,
        "after_window": 1,
        "condition": 1,
        "null_value": 1,
        "deletion": 1,
        "no_event_time": 1,
        "never_readable": 1,
    }


def test_the_value_along_time_has_what_came_late_and_what_was_corrected() -> None:
    (column,) = told().columns
    points = [((at - NOON) / MINUTE, value) for at, value in column.timeline.points]
    us = 1 / MINUTE
    assert (column.timeline.start, column.timeline.cut) == (NOON - 180 * MINUTE, False)
    assert [(round(at, 9), value) for at, value in points if at > -11][:3] == [
        (round(-10 + us, 9), 4.0),
        (round(1 + us, 9), 5.0),
        (round(10 + us, 9), 6.0),
    ]


def test_known_later_is_what_the_moment_would_have_been_told() -> None:
    (column,) = told().columns
    assert column.known_later == (NOON + 14 * MINUTE + 1, 4.375)
    (column,) = told(as_of=NOON + 3 * HOUR).columns
    assert (column.value, column.known_later) == (4.625, None)
    assert column.timeline.of_knowledge
    assert "as known at 2013-10-01 15:00:00Z, was 4.625" in column.verdict


def test_rows_are_listed_nearest_first_and_counted_all() -> None:
    (column,) = told(rows=1).columns
    assert sum(column.counts.values()) == len(EVENTS)
    assert [row.fact for row in column.rows if row.standing == "used"] == ["f3"]
    (column,) = told(rows=0).columns
    assert (column.rows, sum(column.counts.values())) == ((), len(EVENTS))


def test_a_timeline_with_too_many_changes_is_cut_around_the_moment() -> None:
    (whole,) = told().columns
    (cut,) = told(most_changes=4).columns
    assert cut.timeline.cut
    assert not whole.timeline.cut
    assert len(cut.timeline.points) <= 5
    assert cut.timeline.start < NOON < cut.timeline.end
    for instant, value in cut.timeline.points:
        assert whole.timeline.at(instant) == value


def test_an_unknown_entity_is_told_so() -> None:
    (column,) = told(entity={"origin": "XYZ"}).columns
    assert (column.value, column.rows, column.counts) == (None, (), {})
    assert (
        column.verdict == "At 2013-10-01 12:00:00Z the value was null: no row of this entity was ever seen."
    )


def test_all_of_it_is_json() -> None:
    facts = json.loads(json.dumps(told().as_json(), allow_nan=False))
    (column,) = facts["columns"]
    (correction, late) = column["rows"]["not_yet_readable"]
    assert facts["at"] == "2013-10-01T12:00:00Z"
    assert (correction["id"], correction["version"]) == ("f2", 2)
    assert late == {
        "event_time": "2013-10-01T11:00:00Z",
        "available_at": "2013-10-01T12:14:00Z",
        "readable_after_seconds": 840.0,
        "id": "f4",
        "version": 1,
        "value": 5.5,
        "superseded": None,
        "row": {
            "origin": "JFK",
            "happened": "2013-10-01T11:00:00Z",
            "readable": "2013-10-01T12:14:00Z",
            "id": "f4",
            "revision": 1,
            "delay": 5.5,
            "withdrawn": False,
        },
    }
    (gone,) = column["rows"]["superseded"]
    assert gone["superseded"] == {
        "at": "2013-10-01T11:50:00Z", "version": 2, "deleted": False, "same_entity": True, "repeated": False, "value": 5.0
    }  # fmt: skip
    assert {"from", "value"} == set(column["timeline"]["points"][0])


def test_a_correction_that_moves_a_row_to_another_entity_is_named() -> None:
    table = pa.table(
        {
            "k": ["a", "b"],
            "e": pa.array([10, 10], INSTANT),
            "a": pa.array([11, 15], INSTANT),
            "id": ["p", "p"],
        }
    )
    source = sw.Source("rows", table, event_time="e", available_at="a", id="id")
    model = model_of({"n": source.by("k").count()}, k=pa.string())
    (column,) = explain(model, "n", entity={"k": "a"}, at=20, engine=DuckDBEngine()).columns
    (row,) = column.rows
    assert row.superseded_by is not None
    assert (column.value, row.standing, row.superseded_by.same_entity) == (0, "superseded", False)


def test_rows_are_shown_as_they_are_in_the_source() -> None:
    table = pa.table(
        {
            "k": ["a", "a", "a"],
            "e": pa.array([1, 2, 3], INSTANT),
            "a": pa.array([2, 3, 4], INSTANT),
            "paid": pa.array([Decimal("1.50"), None, None], pa.decimal128(8, 2)),
            "due": pa.array([2, 4, None], pa.int64()),
        }
    )
    source = sw.Source("rows", table, event_time="e", available_at="a")
    rate = source.by("k").ratio("paid", "due", prior=0.5, weight=2.0)
    model = model_of({"rate": rate, "seen": source.by("k").exists(over="2us")}, k=pa.string())
    (column,) = explain(model, "rate", entity={"k": "a"}, at=9, engine=DuckDBEngine()).columns
    # A row counts where one of the two columns is not null.
    assert [(row.standing, row.value) for row in column.rows] == [
        ("used", [Decimal("1.50"), 2]),
        ("used", [None, 4]),
        ("null_value", [None, None]),
    ]
    assert column.value == (1.5 + 0.5 * 2) / (6 + 2)
    assert definition_of(column.aggregate, column.window) == (
        "ratio(paid, by=due, prior=0.5, weight=2.0) of rows by k"
    )
    assert column.as_json(9)["rows"]["used"][0]["row"]["paid"] == "1.50"
    (column,) = explain(model, "seen", entity={"k": "a"}, at=9, engine=DuckDBEngine()).columns
    assert (column.value, column.timeline.points[-1][1]) == (False, False)


@pytest.mark.parametrize(
    ("kind", "values", "given", "read"),
    [
        (pa.int64(), [7, 8], "7", 7),
        (pa.bool_(), [True, False], "true", True),
        (
            pa.timestamp("us", tz="UTC"),
            [0, 5],
            "1970-01-01T01:00:00+01:00",
            np.datetime64(0, "us").item().isoformat(),
        ),
    ],
    ids=["integer", "boolean", "instant"],
)
def test_a_key_is_read_by_its_columns_type(kind: pa.DataType, values: list, given: str, read: Any) -> None:
    table = pa.table(
        {"k": pa.array(values, kind), "e": pa.array([1, 1], INSTANT), "a": pa.array([2, 2], INSTANT)}
    )
    source = sw.Source("rows", table, event_time="e", available_at="a")
    model = model_of({"n": source.by("k").count()}, k=kind)
    explained = explain(model, "n", entity={"k": given}, at=9, engine=DuckDBEngine())
    assert (explained.columns[0].value, explained.columns[0].counts) == (1, {"used": 1})
    with pytest.raises(DataError, match="The key 'k' cannot be read"):
        explain(model, "n", entity={"k": "x"}, at=9, engine=DuckDBEngine())


# What was served


def test_the_explained_value_is_the_served_one(played_world: SmallWorld) -> None:
    model = played_world.load().model("derived")
    bundle = played_world.registry.load(
        played_world.registry.newest("derived") or "", without_code=True, unpickle=False
    )
    logged = [prediction for prediction in played_world.logged() if prediction.model == "derived"]
    engine = played_world.engine()
    for prediction in logged[:: len(logged) // 6]:
        request = dict(zip(bundle.description.request, prediction.request, strict=True))
        vector = dict(zip(bundle.types, prediction.features or (), strict=True))
        for name, key in (("spent", "user"), ("shop_mean", "shop"), ("last_amount", "user")):
            explained = explain(
                model, name, entity={key: request[key]}, at=prediction.t, engine=engine, state=played_world.state
            )  # fmt: skip
            assert {c.column: c.value for c in explained.columns} == {
                column: value
                for column, value in vector.items()
                if column == name or column.startswith(f"{name}_")
            }
            for column in explained.columns:
                assert column.timeline.at(prediction.t) == column.value


def test_rows_of_a_served_world_come_from_its_event_log(played: SmallWorld) -> None:
    model, at = played.load().model("plain"), UNTIL + 20 * HOUR
    files = explain(model, "orders", entity={"user": "u1"}, at=at, engine=played.engine())
    played.write("orders", played.table("orders").slice(0, 0))
    served = explain(
        model, "orders", entity={"user": "u1"}, at=at, engine=played.engine(), state=played.state
    )
    # The files' rows are gone; those of the event log are still there.
    assert 0 < sum(served.columns[0].counts.values()) < sum(files.columns[0].counts.values())


def test_a_folder_that_no_server_had_is_refused(trained_world: SmallWorld, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"There is no server's folder\."):
        explain(
            trained_world.load().model("plain"),
            "orders",
            entity={"user": "u1"},
            at=UNTIL,
            engine=trained_world.engine(),
            state=tmp_path,
        )


# Features that are not aggregates, and names


def test_what_a_derived_feature_is_made_of_is_explained(played_world: SmallWorld) -> None:
    model = played_world.load().model("derived")
    explained = explain(model, "per_order", entity={"user": "u1"}, at=UNTIL, engine=played_world.engine())
    assert explained.inputs == ("spent_2d", "orders")
    assert explained.computed == (
        "per_order is computed from the request by the function 'per_order' of spent_2d, orders."
    )
    assert [column.column for column in explained.columns] == ["spent_2d", "orders"]
    alone = explain(model, "spent_2d", entity={"user": "u1"}, at=UNTIL, engine=played_world.engine())
    assert alone.columns == explained.columns[:1]


def test_what_the_request_gives_is_told_so(trained_world: SmallWorld) -> None:
    model = trained_world.load().model("plain")

    def computed(name: str) -> tuple[str, tuple[str, ...], tuple[ColumnExplanation, ...]]:
        found = explain(model, name, entity={}, at=UNTIL, engine=trained_world.engine())
        return found.computed, found.inputs, found.columns

    assert computed("shop") == (
        "shop is the field 'shop' of the request: its value is what the caller sends. It is a category: a value unseen in training counts as null.",
        ("shop",),
        (),
    )
    assert computed("hour") == (
        "hour is computed from the request: the hour of its field 'opened_at' on the clocks of Europe/Berlin.",
        ("opened_at",),
        (),
    )


@pytest.mark.parametrize(
    ("feature", "entity", "what", "expected"),
    [
        ("spend", {"user": "u1"}, "Model 'plain' has no feature 'spend'.", "nearest: spent, "),
        ("spent", {"usr": "u1"}, "'usr' is no key of this feature.", "nearest: user"),
        ("spent", {}, "The entity has no 'user'.", "a value of each key: user"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(
    trained_world: SmallWorld, feature: str, entity: dict[str, Any], what: str, expected: str
) -> None:
    with pytest.raises(DefinitionError) as raised:
        explain(
            trained_world.load().model("plain"), feature, entity=entity, at=UNTIL, engine=trained_world.engine()
        )  # fmt: skip
    assert raised.value.what == what
    assert raised.value.expected.startswith(expected)


def test_a_feature_that_does_not_fit_its_data_is_refused(trained: SmallWorld) -> None:
    trained.edit('sum("amount"', 'sum("amout"')
    with pytest.raises(Problems, match="amout"):
        explain(
            trained.load().model("plain"), "spent", entity={"user": "u1"}, at=UNTIL, engine=trained.engine()
        )
    explain(trained.load().model("plain"), "orders", entity={"user": "u1"}, at=UNTIL, engine=trained.engine())


def test_all_instants_are_asked_at_once(trained_world: SmallWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = trained_world.engine()
    asked: list[tuple[str, int]] = []
    through = engine.aggregates

    def counted(groupings: Any, schemas: Any, moments: Asked, **options: Any) -> Any:
        asked.append((options["world"], moments.at.shape[0]))
        return through(groupings, schemas, moments, **options)

    monkeypatch.setattr(engine, "aggregates", counted)
    explain(trained_world.load().model("plain"), "spent", entity={"user": "u1"}, at=UNTIL, engine=engine)
    assert [world for world, _ in asked] == ["as_of", "event_time"]
    assert asked[0][1] > 20
    assert asked[1][1] == 1
