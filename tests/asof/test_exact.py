"""A sum is the float64 nearest to the exact sum of its inputs, whatever their order, size and number."""

import itertools
import math
import random
import struct
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sameworld.asof import exact

finite = st.floats(allow_nan=False, allow_infinity=False)
subnormal = st.integers(-(2**52) + 1, 2**52 - 1).map(lambda units: math.ldexp(float(units), -1074))
of_any_exponent = st.builds(math.ldexp, st.floats(-2, 2), st.integers(-1100, 1022))
numbers = st.lists(st.one_of(finite, subnormal, of_any_exponent), max_size=40)
int64 = st.one_of(
    st.integers(-(2**63), 2**63 - 1), st.sampled_from([-(2**63), 2**63 - 1, 0, -1, 1, 2**32, -(2**32)])
)


def partial_of(values: Sequence[float], base: int, limbs: int) -> np.ndarray:
    cell = np.zeros(exact.HEADER + limbs, np.int64)
    for bits in np.array(values, np.float64).view(np.int64):
        exact.add_float(cell, bits, base, 1)
    return cell


def read(cell: np.ndarray, base: int) -> float:
    return exact.read_float(cell, base, np.empty(cell.shape[0] - exact.HEADER, np.int64))


def layout(values: Sequence[float]) -> tuple[int, int]:
    bits = np.array(values, np.float64).view(np.int64)
    lowest, highest = exact.exponent_range(bits, np.ones(bits.shape[0], np.uint8))
    return lowest, exact.limbs_for(lowest, highest)


def kernel_sum(values: Sequence[float]) -> float:
    base, limbs = layout(values)
    return read(partial_of(values, base, limbs), base)


def nearest_float(total: Fraction) -> float:
    try:
        return float(total)
    except OverflowError:
        return math.inf if total > 0 else -math.inf


def bits(value: float) -> str:
    return struct.pack("<d", value).hex()


def read_integers(values: Sequence[int]) -> tuple[int, bool]:
    cell = np.zeros(exact.HEADER + 3, np.int64)
    for value in values:
        exact.add_integer(cell, np.int64(value), 1)
    assert cell[0] == len(values)
    return exact.read_integer(cell, np.empty(3, np.int64))


@settings(max_examples=400, deadline=None)
@given(numbers)
def test_a_sum_is_the_nearest_float_to_the_exact_sum(values: list[float]) -> None:
    expected = nearest_float(sum(map(Fraction, values), Fraction(0)))
    assert bits(kernel_sum(values)) == bits(expected + 0.0)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(-1e300, 1e300), max_size=40))
def test_a_sum_is_what_fsum_gives(values: list[float]) -> None:
    assert bits(kernel_sum(values)) == bits(math.fsum(values) + 0.0)


@settings(max_examples=200, deadline=None)
@given(st.lists(subnormal, max_size=40))
def test_subnormals_are_summed_exactly(values: list[float]) -> None:
    assert bits(kernel_sum(values)) == bits(math.fsum(values) + 0.0)


@settings(max_examples=200, deadline=None)
@given(numbers, st.integers(15, 300), st.randoms(use_true_random=False))
def test_cancellation_over_many_orders_loses_nothing(
    values: list[float], orders: int, shuffle: random.Random
) -> None:
    small = [math.ldexp(value, -1000) if abs(value) > 1 else value for value in values]
    large = [10.0**orders, -(10.0**orders), 3.0 * 10.0**orders, -3.0 * 10.0**orders]
    mixed = [*small, *large]
    shuffle.shuffle(mixed)
    left = sum(map(Fraction, small), Fraction(0)) + Fraction(large[2]) + Fraction(large[3])
    assert bits(kernel_sum(mixed)) == bits(nearest_float(left) + 0.0)


@settings(max_examples=100, deadline=None)
@given(numbers, st.randoms(use_true_random=False))
def test_the_order_of_adding_does_not_matter(values: list[float], shuffle: random.Random) -> None:
    other = list(values)
    shuffle.shuffle(other)
    assert bits(kernel_sum(values)) == bits(kernel_sum(other))


@settings(max_examples=100, deadline=None)
@given(numbers, st.integers(0, 40))
def test_partials_add_up_to_the_partial_of_all(values: list[float], cut: int) -> None:
    base, limbs = layout(values)
    parts = partial_of(values[:cut], base, limbs) + partial_of(values[cut:], base, limbs)
    assert parts.tolist() == partial_of(values, base, limbs).tolist()


ULP = 2.0**-52


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0, ULP / 2], 1.0),
        ([1.0, ULP / 2, 5e-324], 1.0 + ULP),
        ([1.0, ULP / 2, -5e-324], 1.0),
        ([1.0 + ULP, ULP / 2], 1.0 + 2 * ULP),
        ([1.0 + ULP, ULP / 2, -5e-324], 1.0 + ULP),
        ([2.0**53, 1.0], 2.0**53),
        ([2.0**53, 1.0, 2.0**-900], 2.0**53 + 2),
        ([2.0**53 + 2, 1.0], 2.0**53 + 4),
        ([2.0**53, 3.0], 2.0**53 + 4),
        ([2.0 - ULP, ULP / 2], 2.0),
    ],
)
def test_halves_go_to_the_even_neighbour(values: list[float], expected: float) -> None:
    for order in itertools.permutations(values):
        assert bits(kernel_sum(order)) == bits(expected)
        assert bits(kernel_sum([-value for value in order])) == bits(-expected)


LARGEST = math.ldexp(2.0 - ULP, 1023)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([LARGEST, LARGEST, -LARGEST], LARGEST),
        ([LARGEST, 2.0**969], LARGEST),
        ([LARGEST, 2.0**970], math.inf),
        ([LARGEST, 2.0**970, -5e-324], LARGEST),
        ([-LARGEST, -LARGEST], -math.inf),
    ],
)
def test_beyond_the_largest_float_is_an_infinity(values: list[float], expected: float) -> None:
    assert bits(kernel_sum(values)) == bits(expected)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], 0.0),
        ([-0.0], 0.0),
        ([-0.0, -0.0], 0.0),
        ([1.5, -1.5], 0.0),
        ([math.inf, 1.0], math.inf),
        ([-math.inf, LARGEST, LARGEST], -math.inf),
        ([math.inf, math.inf], math.inf),
    ],
)
def test_zeros_and_infinities_have_one_rule(values: list[float], expected: float) -> None:
    assert bits(kernel_sum(values)) == bits(expected)


@pytest.mark.parametrize(
    "values", [[math.nan], [1.0, math.nan, math.inf], [math.inf, -math.inf], [-math.nan, 2.0]]
)
def test_a_sum_without_an_answer_is_the_one_nan(values: list[float]) -> None:
    assert np.float64(kernel_sum(values)).view(np.int64) == exact.CANONICAL_NAN


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(finite, st.integers(1, 2**27)), min_size=1, max_size=12), st.just(2**31 - 1))
def test_two_thousand_million_terms_need_no_carry(terms: list[tuple[float, int]], most: int) -> None:
    assert sum(count for _, count in terms) <= most
    values = [value for value, _ in terms]
    base, limbs = layout(values)
    cell = sum(
        (partial_of([value], base, limbs) * count for value, count in terms), partial_of([], base, limbs)
    )
    expected = nearest_float(sum((Fraction(value) * count for value, count in terms), Fraction(0)))
    assert bits(read(cell, base)) == bits(expected + 0.0)


@pytest.mark.parametrize("value", [LARGEST, -LARGEST, 2.0**-1022 - 5e-324, 1.0 - ULP / 2, -0.1, 2.0**53 - 1])
def test_the_greatest_number_of_equal_terms_is_summed_exactly(value: float) -> None:
    base, limbs = layout([value])
    cell = partial_of([value], base, limbs) * (2**31 - 1)
    assert bits(read(cell, base)) == bits(nearest_float(Fraction(value) * (2**31 - 1)))


def test_nulls_do_not_widen_the_range() -> None:
    values = np.array([1e300, 1.0, 1e-300]).view(np.int64)
    assert exact.exponent_range(values, np.array([0, 1, 0], np.uint8)) == (0, 0)


@settings(max_examples=300, deadline=None)
@given(st.lists(int64, max_size=40))
def test_an_integer_sum_is_exact_or_said_not_to_fit(values: list[int]) -> None:
    total = sum(values)
    fits = -(2**63) <= total < 2**63
    assert read_integers(values) == ((total, True) if fits else (0, False))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([2**63 - 1], 2**63 - 1),
        ([-(2**63)], -(2**63)),
        ([2**63 - 1, 1], None),
        ([-(2**63), -1], None),
        ([2**63 - 1, 1, -1], 2**63 - 1),
        ([-(2**63), -(2**63), 2**63 - 1, 1], -(2**63)),
        ([2**63 - 1] * 3 + [-(2**63)] * 3, -3),
        ([], 0),
    ],
)
def test_the_ends_of_int64_are_reached_and_not_passed(values: list[int], expected: int | None) -> None:
    assert read_integers(values) == ((0, False) if expected is None else (expected, True))


@pytest.mark.parametrize("value", [2**63 - 1, -(2**63), -1, 1, 2**32 - 1])
def test_the_greatest_number_of_equal_integers_is_summed_exactly(value: int) -> None:
    cell = np.zeros(exact.HEADER + 3, np.int64)
    exact.add_integer(cell, np.int64(value), 1)
    total = value * (2**31 - 1)
    fits = -(2**63) <= total < 2**63
    assert exact.read_integer(cell * (2**31 - 1), np.empty(3, np.int64)) == (
        (total, True) if fits else (0, False)
    )
