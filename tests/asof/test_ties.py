"""Of events at one time the last is decided by what the rows say, never by where they stand in a file."""

import itertools

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

MOMENTS = [("ann", 10)]
FLOATS = [0.5, float("nan"), float("inf"), 1e300, 5e-324, -1.0, None]


def last(source):
    return source.by("k").last("x")


def row(
    event: int = 0,
    available: int = 1,
    *,
    version: int | None = None,
    fact: str | None = None,
    x: float | None = 1.0,
) -> dict:
    return {"k": "ann", "e": event, "a": available, "id": fact, "v": version, "d": None, "x": x}


def test_the_later_event_wins(ask) -> None:
    assert ask([row(5, 6, x=1.0), row(4, 9, x=2.0)], last, MOMENTS) == [1.0]


def test_of_one_event_time_the_later_available_time_wins(ask) -> None:
    for rows in itertools.permutations([row(5, 6, x=1.0), row(5, 8, x=2.0), row(5, 7, x=3.0)]):
        assert ask(rows, last, MOMENTS) == [2.0]


def test_of_one_event_and_available_time_the_greater_version_wins(ask) -> None:
    rows = [row(version=1, fact="p", x=1.0), row(version=3, fact="q", x=2.0), row(version=2, fact="r", x=3.0)]
    for order in itertools.permutations(rows):
        assert ask(order, last, MOMENTS, id="id", version="v") == [2.0]


def test_a_null_is_passed_over(ask) -> None:
    assert ask([row(5, 6, x=None), row(4, 5, x=2.0)], last, MOMENTS) == [2.0]


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    values=st.lists(
        st.tuples(
            st.integers(0, 1), st.integers(1, 2), st.sampled_from(FLOATS), st.sampled_from(["p", "q", None])
        ),
        min_size=2,
        max_size=8,
    ),
    shuffle=st.randoms(use_true_random=False),
    options=st.sampled_from([{}, {"id": "id"}, {"id": "id", "version": "v"}]),
)
def test_shuffling_the_file_never_changes_the_last(ask, values: list, shuffle, options: dict) -> None:
    rows = [row(event, available, x=x, fact=fact, version=0) for event, available, x, fact in values]
    other = list(rows)
    shuffle.shuffle(other)
    assert repr(ask(other, last, MOMENTS, **options)) == repr(ask(rows, last, MOMENTS, **options))


@pytest.mark.parametrize(
    "columns",
    [
        {"x": pa.array([1.0, 2.0, 3.0]), "note": pa.array(["a", "b", "c"])},
        {"x": pa.array(["", "0", None]), "note": pa.array([None, None, None], pa.string())},
        {"x": pa.array([1, 2, 3], pa.int8()), "b": pa.array([True, False, None])},
        {"x": pa.array(["1:a", "a", "1"]), "y": pa.array(["", ":a1", None])},
    ],
)
def test_rows_that_differ_only_in_content_keep_one_order(ask, columns: dict) -> None:
    same = {
        "k": pa.array(["ann"] * 3),
        "e": pa.array([0] * 3, pa.timestamp("us", tz="UTC")),
        "a": pa.array([1] * 3, pa.timestamp("us", tz="UTC")),
    }
    table = pa.table(same | columns)
    given = {str(ask(table.take(list(order)), last, MOMENTS)) for order in itertools.permutations(range(3))}
    assert len(given) == 1


def test_the_order_of_the_columns_does_not_matter(ask) -> None:
    rows = [row(x=float(value)) for value in range(5)]
    names = ["k", "e", "a", "id", "v", "d", "x"]
    types = [
        pa.string(),
        pa.timestamp("us", tz="UTC"),
        pa.timestamp("us", tz="UTC"),
        pa.string(),
        pa.int64(),
        pa.bool_(),
        pa.float64(),
    ]
    table = pa.Table.from_pylist(rows, schema=pa.schema(list(zip(names, types, strict=True))))
    assert ask(table, last, MOMENTS) == ask(table.select(names[::-1]), last, MOMENTS)
