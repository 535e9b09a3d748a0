"""A sample variance is the float64 nearest to the exact one, whatever the order, size, number and parts of its inputs."""

import math
import random
import struct
from collections.abc import Sequence
from fractions import Fraction

import numba
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sameworld.asof import exact, exact_variance

MOST = 2**31 - 1
ULP = 2.0**-52
LARGEST = math.ldexp(2.0 - ULP, 1023)
TINIEST = 5e-324

finite = st.floats(allow_nan=False, allow_infinity=False)
subnormal = st.integers(-(2**52) + 1, 2**52 - 1).map(lambda units: math.ldexp(float(units), -1074))
of_any_exponent = st.builds(math.ldexp, st.floats(-2, 2), st.integers(-1100, 1022))
# The squares of these are near the smallest float64, where fewer bits are kept.
of_tiny_square = st.builds(math.ldexp, st.floats(-2, 2), st.integers(-560, -490))
of_huge_square = st.builds(math.ldexp, st.floats(-2, 2), st.integers(505, 1022))
small_integer = st.integers(-20, 20).map(float)
number = st.one_of(finite, subnormal, of_any_exponent, of_tiny_square, small_integer)
numbers = st.lists(number, min_size=2, max_size=30)
int64 = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.integers(-20, 20),
    st.sampled_from([-(2**63), 2**63 - 1, 1 - 2**63, 2**32, -(2**32), 2**32 - 1, 2**31]),
)


@numba.njit(nogil=True)
def enter_floats(cell: np.ndarray, values: np.ndarray, base: int, start: int, sign: int) -> None:
    for bits in values:
        exact.add_float(cell, bits, base, sign)
        exact_variance.add_square_float(cell, start, bits, base, sign)


@numba.njit(nogil=True)
def enter_integers(cell: np.ndarray, values: np.ndarray, start: int, sign: int) -> None:
    for value in values:
        exact.add_integer(cell, value, sign)
        exact_variance.add_square_integer(cell, start, value, sign)


class Floats:
    """Partials wide enough for some float64s.

    Args:
        values: decide the base and how many limbs there are.
    """

    def __init__(self, values: Sequence[float]) -> None:
        words = np.array(values, np.float64).view(np.int64)
        self.base, highest = exact.exponent_range(words, np.ones(len(values), np.uint8))
        self.sum_limbs = exact.limbs_for(self.base, highest)
        self.square_limbs = exact_variance.square_limbs_for(self.base, highest)

    def enter(self, cell: np.ndarray, values: Sequence[float], sign: int = 1) -> np.ndarray:
        words = np.array(values, np.float64).view(np.int64)
        enter_floats(cell, words, self.base, exact.HEADER + self.sum_limbs, sign)
        return cell

    def partial_of(self, values: Sequence[float]) -> np.ndarray:
        return self.enter(np.zeros(exact.HEADER + self.sum_limbs + self.square_limbs, np.int64), values)

    def read(self, cell: np.ndarray) -> float:
        size = exact_variance.scratch_size(self.sum_limbs, self.square_limbs)
        # What is left in it from another call must not matter.
        scratch = np.full(size, -0x5A5A5A5A5A5A5A5A, np.int64)
        return exact_variance.read_variance(cell, self.base, self.sum_limbs, self.square_limbs, scratch)


class Integers(Floats):
    """Partials for int64s."""

    def __init__(self) -> None:
        self.base = 0
        self.sum_limbs = exact_variance.INTEGER_SUM_LIMBS
        self.square_limbs = exact_variance.INTEGER_SQUARE_LIMBS

    def enter(self, cell: np.ndarray, values: Sequence[int], sign: int = 1) -> np.ndarray:
        enter_integers(cell, np.array(values, np.int64), exact.HEADER + self.sum_limbs, sign)
        return cell


def variance_of(values: Sequence[float]) -> float:
    form = Floats(values)
    return form.read(form.partial_of(values))


def integer_variance_of(values: Sequence[int]) -> float:
    return Integers().read(Integers().partial_of(values))


def nearest_float(value: Fraction) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def fraction_of(counts: Sequence[tuple[float, int]]) -> Fraction:
    """Give the sample variance of values, each so many times, as its definition has it: the squared distances from the mean over n - 1."""
    n = sum(times for _, times in counts)
    mean = sum((Fraction(value) * times for value, times in counts), Fraction(0)) / n
    return sum(((Fraction(value) - mean) ** 2 * times for value, times in counts), Fraction(0)) / (n - 1)


def nearest_variance(values: Sequence[float]) -> float:
    return nearest_float(fraction_of([(value, 1) for value in values]))


def bits(value: float) -> str:
    return struct.pack("<d", value).hex()


@settings(max_examples=500, deadline=None)
@given(numbers)
def test_the_variance_is_the_float_nearest_to_the_exact_one(values: list[float]) -> None:
    assert bits(variance_of(values)) == bits(nearest_variance(values))


@settings(max_examples=300, deadline=None)
@given(number, number)
def test_two_values_have_half_their_squared_distance(one: float, other: float) -> None:
    expected = nearest_float((Fraction(one) - Fraction(other)) ** 2 / 2)
    assert bits(variance_of([one, other])) == bits(expected)


@settings(max_examples=300, deadline=None)
@given(st.lists(of_tiny_square, min_size=2, max_size=12))
def test_a_subnormal_variance_is_rounded_once(values: list[float]) -> None:
    assert bits(variance_of(values)) == bits(nearest_variance(values))


@settings(max_examples=200, deadline=None)
@given(st.lists(of_huge_square, min_size=2, max_size=12))
def test_a_variance_is_infinity_just_beyond_the_largest_float(values: list[float]) -> None:
    assert bits(variance_of(values)) == bits(nearest_variance(values))


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(0, 200), min_size=2, max_size=30),
    st.floats(1e-3, 1e3),
    st.integers(-30, 30).filter(lambda orders: abs(orders) > 14),
)
def test_a_spread_far_below_the_mean_loses_nothing(steps: list[int], mean: float, orders: int) -> None:
    close = [mean + step * math.ulp(mean) for step in steps]
    assert bits(variance_of(close)) == bits(nearest_variance(close))
    far = [*(step * 10.0 ** -abs(orders) for step in steps), 10.0**orders, -(10.0**orders), mean]
    assert bits(variance_of(far)) == bits(nearest_variance(far))


@settings(max_examples=200, deadline=None)
@given(number, st.integers(2, 200))
def test_equal_values_have_a_variance_of_plus_zero(value: float, times: int) -> None:
    assert bits(variance_of([value] * times)) == bits(0.0)
    assert bits(variance_of([0.0, -0.0] * times)) == bits(0.0)


@settings(max_examples=500, deadline=None)
@given(st.lists(int64, min_size=2, max_size=30))
def test_the_variance_of_integers_is_the_float_nearest_to_the_exact_one(values: list[int]) -> None:
    assert bits(integer_variance_of(values)) == bits(nearest_variance(values))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(-(2**53), 2**53), min_size=2, max_size=30))
def test_integers_and_the_floats_equal_to_them_have_one_variance(values: list[int]) -> None:
    assert bits(integer_variance_of(values)) == bits(variance_of([float(value) for value in values]))


# Halves of a unit in the last place need exact ties: (a - b)**2 / 2 of two values, or a square over 2**k.
@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, math.ldexp(1.0, -537)], 0.0),  # 2**-1075: half of the smallest, to even
        ([0.0, math.ldexp(1.0 + ULP, -537)], TINIEST),  # a little more than half of it
        ([0.0, math.ldexp(1.0 - ULP / 2, -537)], 0.0),
        ([0.0, math.ldexp(1.0, -540)], 0.0),
        ([0.0, TINIEST], 0.0),
        ([-TINIEST, TINIEST], 0.0),
        ([0.0, math.ldexp(1.0, -536)], 2 * TINIEST),
        ([0.0, 3 * math.ldexp(1.0, -537)], 4 * TINIEST),  # 4.5 units
        ([0.0, 5 * math.ldexp(1.0, -537)], 12 * TINIEST),  # 12.5 units
        ([0.0, 7 * math.ldexp(1.0, -537)], 24 * TINIEST),  # 24.5 units
        ([0.0, 7 * math.ldexp(1.0 + ULP, -537)], 25 * TINIEST),
        ([0.0, float(2**27 - 1), 0.0, 0.0], 2.0**52 - 2.0**26 + 0.25),
        ([0.0, 2.0**27 + 1], 2.0**53 + 2.0**27),  # and a half
        ([0.0, 2.0**27 + 3], 2.0**53 + 3 * 2.0**27 + 4),  # 4.5, and floats are 2 apart
        ([LARGEST, -LARGEST], math.inf),
        ([0.0, 2.0**512], 2.0**1023),
        ([-(2.0**511), 2.0**511 * 1.5], 25 * 2.0**1019),
        ([2.0**512, -(2.0**511)], math.inf),  # 2.25 * 2.0**1023
        ([0.0, 2.0**512 * 1.4142135623730950], math.ldexp(1.4142135623730950**2, 1023)),
        ([1.0, 2.0, 3.0, 4.0], float(Fraction(5, 3))),
    ],
)
def test_ties_and_the_ends_of_float64_round_as_one_would(values: list[float], expected: float) -> None:
    assert bits(nearest_variance(values)) == bits(expected)
    assert bits(variance_of(values)) == bits(expected)
    assert bits(variance_of([-value for value in reversed(values)])) == bits(expected)


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 2**26), st.integers(-1130, -1060))
def test_halves_of_a_subnormal_go_to_the_even_neighbour(root: int, exponent: int) -> None:
    values = [0.0, math.ldexp(float(root), exponent // 2)]
    assert bits(variance_of(values)) == bits(nearest_variance(values))


def limbs_of(number: int, limbs: int) -> list[int]:
    return [number >> 32 * i & 0xFFFFFFFF for i in range(limbs)]


@settings(max_examples=500, deadline=None)
@given(
    st.sampled_from([2, 3, 4, 7, 2**16 - 1, 2**16, 2**16 + 1, 10**6, MOST]),
    st.integers(2**52, 2**53 - 1),
    st.integers(0, 200) | st.just(None),
    st.integers(0, 6),
    st.integers(-1, 1),
    st.integers(-1, 1),
)
@example(MOST, 2**52, 30, 0, 1, 0)  # only dividing by n - 1 leaves anything over
@example(MOST, 2**52, 30, 0, 1, 1)  # only dividing by n does
def test_any_remainder_breaks_a_tie(
    n: int, odd: int, above: int | None, few: int, delta: int, total: int
) -> None:
    """Partials whose variance is half-way between two floats but for the least that their count, sum and squares can say."""
    base, sum_limbs, square_limbs = (0, 3, 12) if above is not None else (-1074, 3, 40)
    # Without `above` the two floats are among the smallest, `few` units and one more.
    half_way = (2 * odd + 1) << above if above is not None else (2 * few + 1) << 1073
    squares = half_way * (n - 1) + delta
    cell = np.array(
        [n, 0, 0, 0, total, *limbs_of(0, sum_limbs - 1), *limbs_of(squares, square_limbs)], np.int64
    )
    scratch = np.empty(exact_variance.scratch_size(sum_limbs, square_limbs), np.int64)
    got = exact_variance.read_variance(cell, base, sum_limbs, square_limbs, scratch)
    expected = Fraction(n * squares - total * total, n * (n - 1)) * Fraction(4) ** base
    assert bits(got) == bits(nearest_float(expected))


@pytest.mark.parametrize("special", [math.nan, -math.nan, math.inf, -math.inf])
def test_no_variance_with_a_value_that_is_not_finite(special: float) -> None:
    values = [1.0, special, 2.0]
    assert np.float64(variance_of(values)).view(np.int64) == exact.CANONICAL_NAN
    form = Floats(values)
    left = form.enter(form.partial_of(values), [special], -1)
    assert left.tolist() == form.partial_of([1.0, 2.0]).tolist()
    assert bits(form.read(left)) == bits(0.5)


@pytest.mark.parametrize("values", [[], [3.5], [-0.0], [LARGEST]])
def test_no_variance_below_two_values(values: list[float]) -> None:
    assert math.isnan(variance_of(values))


@settings(max_examples=200, deadline=None)
@given(numbers, st.lists(number, max_size=30), st.randoms(use_true_random=False))
def test_what_left_was_never_there(values: list[float], passing: list[float], shuffle: random.Random) -> None:
    form = Floats([*values, *passing])
    cell = form.partial_of([])
    steps = [(value, 1) for value in [*values, *passing]] + [(value, -1) for value in passing]
    shuffle.shuffle(steps)  # even before it came: it is all one sum
    for value, sign in steps:
        form.enter(cell, [value], sign)
    assert cell.tolist() == form.partial_of(values).tolist()
    assert bits(form.read(cell)) == bits(nearest_variance(values))


@settings(max_examples=200, deadline=None)
@given(st.lists(int64, min_size=2, max_size=30), st.lists(int64, max_size=30))
def test_integers_that_left_were_never_there(values: list[int], passing: list[int]) -> None:
    form = Integers()
    cell = form.enter(form.partial_of([*passing, *values]), passing, -1)
    assert cell.tolist() == form.partial_of(values).tolist()
    assert bits(form.read(cell)) == bits(nearest_variance(values))


@settings(max_examples=200, deadline=None)
@given(numbers, st.integers(0, 30), st.randoms(use_true_random=False))
def test_partials_of_parts_add_up_to_that_of_all(
    values: list[float], cut: int, shuffle: random.Random
) -> None:
    form, other = Floats(values), list(values)
    shuffle.shuffle(other)
    parts = form.partial_of(other[:cut]) + form.partial_of(other[cut:])
    assert parts.tolist() == form.partial_of(values).tolist()
    assert bits(form.read(parts)) == bits(variance_of(values))


@settings(max_examples=200, deadline=None)
@given(numbers, numbers)
def test_a_partial_wider_than_needed_reads_the_same(values: list[float], more: list[float]) -> None:
    form = Floats([*values, *more])
    assert bits(form.read(form.partial_of(values))) == bits(variance_of(values))


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(number, st.integers(1, 2**27) | st.integers(2**16 - 2, 2**16 + 2)), min_size=1, max_size=12
    )
)
def test_two_thousand_million_values_need_no_carry(counts: list[tuple[float, int]]) -> None:
    counts = [(counts[0][0], counts[0][1] + 1), *counts[1:]]
    form = Floats([value for value, _ in counts])
    cell = sum((form.partial_of([value]) * times for value, times in counts), form.partial_of([]))
    assert bits(form.read(cell)) == bits(nearest_float(fraction_of(counts)))


@pytest.mark.parametrize("one", [-(2**63), 2**63 - 1, 0])
@pytest.mark.parametrize("other", [-(2**63), 2**63 - 1, 1])
@pytest.mark.parametrize("times", [1, 2**15, 2**16 - 1, 2**16, 2**30, MOST - 1])
def test_the_greatest_number_of_integers_is_read_exactly(one: int, other: int, times: int) -> None:
    cell = Integers().partial_of([one]) * times + Integers().partial_of([other]) * (MOST - times)
    expected = nearest_float(fraction_of([(one, times), (other, MOST - times)]))
    assert bits(Integers().read(cell)) == bits(expected)


@pytest.mark.parametrize(
    "one", [LARGEST, -LARGEST, 2.0**-1022 - TINIEST, 1.0 - ULP / 2, 2.0**-500, 2.0**53 - 1]
)
@pytest.mark.parametrize("other", [TINIEST, -1.0, 2.0**-520, 2.0**53])
@pytest.mark.parametrize("times", [1, 2**16, MOST - 1])
def test_the_greatest_number_of_floats_is_read_exactly(one: float, other: float, times: int) -> None:
    form = Floats([one, other])
    cell = form.partial_of([one]) * times + form.partial_of([other]) * (MOST - times)
    expected = nearest_float(fraction_of([(one, times), (other, MOST - times)]))
    assert bits(form.read(cell)) == bits(expected)


@pytest.mark.parametrize("kind", ["prices", "any", "far from zero"])
def test_a_hundred_thousand_values_have_the_nearest_variance(kind: str) -> None:
    random_ = np.random.default_rng(7)
    values = {
        "prices": lambda: random_.lognormal(3, 1, 100_000),
        "any": lambda: np.ldexp(random_.normal(size=100_000), random_.integers(-60, 60, 100_000)),
        "far from zero": lambda: 1e9 + random_.integers(-9, 9, 100_000) * 2.0**-20,
    }[kind]()
    # In whole numbers, as a hundred thousand fractions take minutes.
    low = min(math.frexp(value)[1] for value in values.tolist()) - 53
    whole = [int(math.ldexp(value, -low)) for value in values.tolist()]
    n, total, squares = len(whole), sum(whole), sum(value * value for value in whole)
    expected = float(Fraction(n * squares - total * total, n * (n - 1)) * Fraction(4) ** low)
    assert bits(variance_of(values.tolist())) == bits(expected)
    assert bits(variance_of(np.sort(values).tolist())) == bits(expected)
