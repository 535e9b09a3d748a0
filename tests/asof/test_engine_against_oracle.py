"""Every engine gives the oracle's bits, for histories made to break things."""

import struct

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import sameworld as sw
from sameworld.asof.plan import groupings_of
from sameworld.asof.rows import prepared_sql
from sameworld.definitions.windows import Window
from sameworld.engines.duckdb import DuckDBEngine
from sameworld.engines.interface import Asked
from sameworld.testing import oracle

INSTANT = pa.timestamp("us", tz="UTC")
SCHEMA = pa.schema(
    [
        ("k1", pa.string()),
        ("k2", pa.int64()),
        ("e", INSTANT),
        ("a", INSTANT),
        ("id", pa.string()),
        ("v", pa.int64()),
        ("d", pa.bool_()),
        ("x", pa.float64()),
        ("n", pa.int64()),
        ("s", pa.string()),
    ]
)

times = st.integers(0, 12)
floats = st.one_of(
    st.sampled_from(
        [
            0.0,
            -0.0,
            1e-300,
            1e300,
            -1e300,
            1e15,
            -1e15,
            0.1,
            float("nan"),
            float("inf"),
            float("-inf"),
            5e-324,
        ]
    ),
    st.floats(width=64),
    st.floats(-10, 10),
)
rows = st.fixed_dictionaries(
    {
        "k1": st.sampled_from(["a", "b", "ü", "", None]),
        "k2": st.sampled_from([0, 1, None]),
        "e": st.one_of(st.none(), times),
        "a": st.one_of(st.none(), times),
        "id": st.sampled_from(["p", "q", "r", None]),
        "v": st.sampled_from([0, 1, 2, None]),
        "d": st.sampled_from([False, False, False, True, None]),
        "x": st.one_of(st.none(), floats),
        "n": st.one_of(st.none(), st.integers(-(2**40), 2**40)),
        "s": st.sampled_from(["", "u", "ж", None]),
    }
)
moments = st.lists(
    st.tuples(st.sampled_from(["a", "b", "ü", "", "unknown", None]), st.sampled_from([0, 1, None]), times),
    min_size=1,
    max_size=8,
)

COLUMN_OF = {"count": None, "age": None, "sum": "x", "mean": "x", "min": "x", "max": "x", "last": "s"}
WINDOWS = (Window(), Window("3us"), Window("50us"), Window("4us", ahead=True))


def bits(value: object) -> object:
    return struct.pack("<d", value).hex() if isinstance(value, float) else value


def features(source: sw.Source, keys: tuple[str, ...]) -> list:
    plain, filtered = source.by(*keys), source.where("x > 0 OR s = 'u'").by(*keys)
    made = []
    for grouped in (plain, filtered):
        for operation, column in COLUMN_OF.items():
            for chosen in [column, "n"] if operation in ("sum", "mean", "min", "max", "last") else [None]:
                method = getattr(grouped, operation)
                made.append(method(chosen, over=WINDOWS) if chosen else method(over=WINDOWS))
    return made


@pytest.mark.parametrize("versions", ["append_only", "by_arrival", "by_version"])
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    history=st.lists(rows, max_size=14),
    repeated=st.lists(st.integers(0, 13), max_size=3),
    asked=moments,
    two_keys=st.booleans(),
)
def test_every_value_equals_the_oracle_bit_for_bit(
    versions: str, history: list, repeated: list, asked: list, two_keys: bool
) -> None:
    history = history + [history[place] for place in repeated if place < len(history)]
    table = pa.Table.from_pylist(history, schema=SCHEMA)
    named = {
        "append_only": {},
        "by_arrival": {"id": "id", "deleted": "d"},
        "by_version": {"id": "id", "version": "v", "deleted": "d"},
    }[versions]
    source = sw.Source("rows", table, event_time="e", available_at="a", **named)
    keys = ("k1", "k2") if two_keys else ("k1",)
    aggregates = features(source, keys)
    engine = DuckDBEngine(threads=1)
    schema = engine.describe(table, "rows")
    at = np.array([t for _, _, t in asked], np.int64)
    key_table = pa.table(
        {
            "k1": pa.array([m[0] for m in asked], pa.string()),
            "k2": pa.array([m[1] for m in asked], pa.int64()),
        }
    )

    got = engine.aggregates(
        groupings_of(aggregates), {source.content: schema}, Asked(key_table, at, at), rows={}, world="as_of"
    )

    engine._con.register("raw", table)
    ties = (
        engine._con.execute(
            f"SELECT tie FROM ({prepared_sql(source, schema, keys, (), 'raw')})"
        ).fetchnumpy()["tie"]
        if history
        else []
    )
    for aggregate in aggregates:
        versions_of = [
            oracle.Version(
                key=tuple(row[key] for key in keys),
                event_time=row["e"],
                available_at=row["a"],
                value=row[aggregate.column] if aggregate.column else None,
                holds=aggregate.where is None
                or (row["x"] is not None and (row["x"] > 0 or row["x"] != row["x"]))
                or row["s"] == "u",
                fact=row["id"] if source.id else None,
                version=(row["v"] if row["v"] is not None else -(2**63)) if source.version else 0,
                deleted=bool(row["d"]) and source.deleted is not None,
                tie=int(tie),
            )
            for row, tie in zip(history, ties, strict=True)
        ]
        for window in aggregate.windows:
            start, end = window.bounds
            expected = [
                bits(
                    oracle.value_at(
                        versions_of,
                        aggregate.operation,
                        (k1, k2) if two_keys else (k1,),
                        t,
                        start=start,
                        end=end,
                    )
                )
                for k1, k2, t in asked
            ]
            assert [
                bits(value) for value in got[aggregate.columns[aggregate.windows.index(window)]].to_pylist()
            ] == expected, (aggregate.operation, aggregate.column, window)
    engine.close()
