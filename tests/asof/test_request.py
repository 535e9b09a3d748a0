"""What a derived feature and an estimator are given: the nearest float64, and lists as arrays."""

import math
import struct
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pytest
from every_aggregation import CASES, COLUMNS, INSTANT, bits
from hypothesis import given, settings
from hypothesis import strategies as st

import sameworld as sw
from sameworld.asof.request import evaluate
from sameworld.asof.schema import type_named, value_type
from sameworld.asof.values import nearest_floats
from sameworld.definitions.feature import Derive, Field
from sameworld.definitions.functions import NamedFunction
from sameworld.engines.duckdb import DuckDBEngine
from sameworld.training.moments import read_moments


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1)), max_size=20),
    st.integers(0, 18),
    st.integers(0, 3),
)
def test_a_decimal_is_given_as_the_nearest_float(units: list, scale: int, skipped: int) -> None:
    kind = value_type(f"decimal({scale})")
    column = pa.array([None if unit is None else Decimal(unit).scaleb(-scale) for unit in units], kind)

    got = nearest_floats(column.slice(skipped))

    expected = [math.nan if unit is None else float(Fraction(unit, 10**scale)) for unit in units[skipped:]]
    assert [bits(value) for value in got.tolist()] == [bits(value) for value in expected]


def test_a_decimal_field_of_the_moments_is_what_the_same_number_in_a_request_is() -> None:
    table = pa.table(
        {
            "at": pa.array([1, 2, 3, 4], INSTANT),
            "price": pa.array(["0.57", "4.35", None, "-6.10"]).cast(pa.decimal128(18, 2)),
        }
    )
    engine = DuckDBEngine(threads=1)
    fields = read_moments(engine, sw.Moments(table, at="at")).fields
    engine.close()
    assert fields["price"].type == pa.float64()
    assert fields["price"].to_pylist() == [0.57, 4.35, None, -6.1]


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([2**63 - 1, None, -1]), [2.0**63, math.nan, -1.0]),
        (pa.array([True, None, False]), [1.0, math.nan, 0.0]),
        (pa.array([7, None], INSTANT), [7.0, math.nan]),
        (pa.array([0.5, None, math.nan]), [0.5, math.nan, math.nan]),
        (pa.nulls(2, pa.decimal128(38, 2)), [math.nan, math.nan]),
        (pa.array([], pa.decimal128(38, 2)), []),
    ],
)
def test_numbers_booleans_and_instants_are_given_as_floats(column: pa.Array, expected: list) -> None:
    assert [bits(value) for value in nearest_floats(column).tolist()] == [bits(value) for value in expected]


@pytest.mark.parametrize("family", COLUMNS)
def test_the_type_of_every_value_is_known_by_its_name(family: str) -> None:
    named = f"{family}(2)" if family == "decimal" else family
    for kind in (value_type(named), value_type(f"list of {named}")):
        assert type_named(str(kind)) == kind
    assert {family for _, family in CASES} <= {None, *COLUMNS}


def given_to_derived(column: pa.Array) -> np.ndarray:
    """What a function of `sw.derive` is called with."""
    seen: list[np.ndarray] = []

    def look(values):
        seen.append(values)
        return np.zeros(len(values))

    features = {"of": Field("of"), "seen": Derive(NamedFunction("look", "look", look), ("of",))}
    evaluate(features, {}, {"of": column})
    return seen[0]


@pytest.mark.parametrize(
    ("lists", "kind", "expected"),
    [
        ([[1, 2], None, [3]], pa.int64(), [np.array([1.0, 2.0]), None, np.array([3.0])]),
        ([[0.5], None, [math.nan, 1.0]], pa.float64(), [np.array([0.5]), None, np.array([math.nan, 1.0])]),
        ([[True, False]], pa.bool_(), [np.array([1.0, 0.0])]),
        ([[Decimal("1.10")], None], pa.decimal128(38, 2), [np.array([1.1]), None]),
        ([[5, 6], None], INSTANT, [np.array([5.0, 6.0]), None]),
        ([["a", "ж"], None], pa.string(), [np.array(["a", "ж"], object), None]),
        ([None, None], pa.int64(), [None, None]),
    ],
)
def test_a_list_is_given_as_an_array_of_its_own_or_none(
    lists: list, kind: pa.DataType, expected: list
) -> None:
    column = pa.array([None, *lists], pa.list_(kind)).slice(1)

    got = given_to_derived(column)

    assert got.dtype == object
    assert got.shape == (len(lists),)
    for one, wanted in zip(got, expected, strict=True):
        if wanted is None:
            assert one is None
        else:
            assert one.dtype == wanted.dtype
            np.testing.assert_array_equal(one, wanted)


def test_what_a_function_does_to_one_list_is_not_done_to_another() -> None:
    got = given_to_derived(pa.array([[1.0, 2.0], [3.0]]))
    got[0].sort()
    got[0] *= 0
    assert got[1].tolist() == [3.0]
    assert struct.pack("<d", got[1][0])
