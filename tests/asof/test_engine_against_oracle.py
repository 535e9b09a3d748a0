"""Every engine gives the oracle's bits, for histories made to break things."""

import struct

import numpy as np
import pyarrow as pa
import pytest
from histories import CONDITION, SCHEMA, VERSIONED, rows, ties_of, times, versions
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import sameworld as sw
from sameworld.asof.plan import groupings_of
from sameworld.definitions.windows import Window
from sameworld.engines.duckdb import DuckDBEngine
from sameworld.engines.interface import Asked
from sameworld.testing import oracle

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
    plain, filtered = source.by(*keys), source.where(CONDITION).by(*keys)
    made = []
    for grouped in (plain, filtered):
        for operation, column in COLUMN_OF.items():
            for chosen in [column, "n"] if operation in ("sum", "mean", "min", "max", "last") else [None]:
                method = getattr(grouped, operation)
                made.append(method(chosen, over=WINDOWS) if chosen else method(over=WINDOWS))
    return made


@pytest.mark.parametrize("closing", [False, True])
@pytest.mark.parametrize("versioned", VERSIONED)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    history=st.lists(rows, max_size=14),
    repeated=st.lists(st.integers(0, 13), max_size=3),
    asked=moments,
    two_keys=st.booleans(),
    within=st.integers(1, 9),
)
def test_every_value_equals_the_oracle_bit_for_bit(
    versioned: str, closing: bool, history: list, repeated: list, asked: list, two_keys: bool, within: int
) -> None:
    history = history + [history[place] for place in repeated if place < len(history)]
    table = pa.Table.from_pylist(history, schema=SCHEMA)
    named = dict(VERSIONED[versioned])
    closing = closing and bool(named)
    if closing:
        named |= {"corrections_within": f"{within}us"}
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

    ties = ties_of(engine, source, schema, keys, table)
    for aggregate in aggregates:
        versions_of = versions(source, aggregate, history, ties)
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
                        corrections_within=within if closing else None,
                    )
                )
                for k1, k2, t in asked
            ]
            assert [
                bits(value) for value in got[aggregate.columns[aggregate.windows.index(window)]].to_pylist()
            ] == expected, (aggregate.operation, aggregate.column, window)
    engine.close()
