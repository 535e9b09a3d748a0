"""Every value survives the log to the bit, and no two that differ compare equal."""

from decimal import Decimal
from typing import Any

import msgspec
import pyarrow as pa
import pytest
from every_aggregation import COLUMNS
from hypothesis import given, settings
from hypothesis import strategies as st

from sameworld.asof.schema import value_type
from sameworld.evaluation.prove import same_bits
from sameworld.stores.prediction_log import column_of, logged

FAMILIES = [*(family for family in COLUMNS if family != "decimal"), "decimal(2)", "decimal(18)", "decimal(0)"]


def values(family: str) -> st.SearchStrategy[Any]:
    if family.startswith("decimal"):
        scale = int(family[8:-1])
        return st.integers(-(2**63), 2**63 - 1).map(lambda unit: Decimal(unit).scaleb(-scale))
    return next(iter(COLUMNS[family].values()))[1]


def through_the_log(column: pa.Array) -> pa.Array:
    record = msgspec.msgpack.encode(logged(column))
    return column_of(msgspec.msgpack.decode(record), column.type)


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_every_value_survives_the_log(family: str, data: st.DataObject) -> None:
    one = st.one_of(st.none(), values(family))
    many = st.one_of(st.none(), st.lists(values(family), min_size=1, max_size=4))
    for kind, strategy in ((value_type(family), one), (value_type(f"list of {family}"), many)):
        column = pa.array(data.draw(st.lists(strategy, max_size=6)), kind)

        back = through_the_log(column)

        assert back.type == column.type
        assert same_bits(column, back).all()


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_columns_are_the_same_exactly_where_their_values_are(family: str, data: st.DataObject) -> None:
    few = [data.draw(values(family), "one"), data.draw(values(family), "other")]
    one = st.one_of(st.none(), st.sampled_from(few))
    many = st.one_of(st.none(), st.lists(st.sampled_from(few), min_size=1, max_size=3))
    for kind, strategy in ((value_type(family), one), (value_type(f"list of {family}"), many)):
        pairs = data.draw(st.lists(st.tuples(strategy, strategy), max_size=8))
        first, second = (pa.array([pair[i] for pair in pairs], kind) for i in (0, 1))
        # Arrow's text of a value tells NaN, decimals and instants; 0.0 and -0.0 it tells too.
        expected = [repr(pair[0]) == repr(pair[1]) for pair in pairs]
        assert same_bits(first, second).tolist() == expected


def test_a_bit_of_a_list_is_seen() -> None:
    kind = pa.list_(pa.float64())
    one = pa.array([[1.0, 2.0], None, [3.0], [0.0], [1.0, 2.0]], kind)
    other = pa.array([[1.0, 2.0000000000000004], None, None, [-0.0], [1.0]], kind)
    assert same_bits(one, other).tolist() == [False, True, False, False, False]
    assert same_bits(one.slice(1), one.slice(1)).all()
