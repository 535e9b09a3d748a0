"""Rows that come few at a time are brought into order one by one, many together; what lies in the index must not tell which."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
from histories import CONDITION, SCHEMA, Row, rows, source_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sameworld.asof.plan import Grouping, Input
from sameworld.engines.duckdb import DuckDBEngine
from sameworld.stores.chunks import Layout
from sameworld.stores.events import EventReader
from sameworld.stores.lmdb import Place
from sameworld.stores.prepared import Prepared, Preparer, together
from sameworld.stores.taking import Coming, few_runs, many_runs

engine = DuckDBEngine(threads=1)
schema = engine.describe(SCHEMA.empty_table(), "rows")
source = source_of([], "append_only")
inputs = tuple(
    Input(condition, column)
    for condition in (None, CONDITION)
    for column in [None, *(name for name in SCHEMA.names if name not in ("k1", "k2", "k3", "e", "a", "id", "v", "d"))]
)  # fmt: skip
groupings = [Grouping(source, keys, inputs, ()) for keys in (("k1",), ("k2", "k3", "k1"))]
preparer = Preparer(EventReader(source, schema), groupings)


def prepared(history: Sequence[Row]) -> Prepared:
    return preparer.prepare(pa.Table.from_pylist(list(history), schema=SCHEMA))


def as_table(some: Prepared) -> Prepared:
    """The same as many rows are prepared."""
    arrays = [some.array(name) for name in some.schema.names]
    return Prepared(some.schema, pa.Table.from_arrays(arrays, schema=some.schema))


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(deliveries=st.lists(st.lists(rows, max_size=6), min_size=1, max_size=3), data=st.data())
def test_few_rows_and_many_become_the_same_bytes(deliveries: list[list[Row]], data: st.DataObject) -> None:
    # given prepared rows, some as values and some as a table, live or from a replay
    some = [prepared(history) for history in deliveries]
    within = data.draw(st.sampled_from([None, 3]), "within")
    stamps = data.draw(st.lists(st.sampled_from([0, 7]), min_size=len(some), max_size=len(some)), "stamps")
    mixed = [as_table(part) if data.draw(st.booleans(), "as a table") else part for part in some]
    few = Coming.of(list(zip(some, stamps, strict=True)), preparer.keys, within)
    many = Coming.of(list(zip(mixed, stamps, strict=True)), preparer.keys, within)
    living = [
        event is not None and data.draw(st.booleans(), "lives")
        for event in few.rows.values("event_time")
    ]  # fmt: skip
    for grouping in groupings:
        place = Place(grouping, Layout(grouping, schema), b"place", None, *preparer.places[grouping.content])
        # when they are brought into order one by one and together
        one_by_one = few_runs(place, few, living)
        # then it is the same
        assert one_by_one == many_runs(place, many, living)
        assert one_by_one == few_runs(place, many, living)


def test_prepared_rows_are_cut_and_put_together_again() -> None:
    # given
    history = [{**dict.fromkeys(SCHEMA.names), "k1": "a", "e": number, "a": number} for number in range(5)]
    for whole in (prepared(history), as_table(prepared(history))):
        # when
        parts = whole.parts([2, 0, 3])
        # then
        assert [len(part) for part in parts] == [2, 0, 3]
        assert together(parts).values("event_time") == whole.values("event_time") == [0, 1, 2, 3, 4]
        assert whole.take([3, 1]).values("available_at") == [3, 1]
