"""Exact sample variances: sums of squares in limbs as sums are (see `exact`), and one rounding of the exact fraction at the end.

A partial is that of a sum, with the limbs of the sum of squares after those of the sum; they count units of 2**(2 * base + 32 i). Nothing but integers is
added, so a row can be taken away again and the order does not matter.

variance = (n * sum of squares - sum**2) / (n * (n - 1)), all of it in whole numbers until the division, whose remainder only decides the rounding.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sameworld.asof.compiled import compiled
from sameworld.asof.exact import carry, nearest

_LOW32 = np.uint64((1 << 32) - 1)
_32 = np.uint64(32)
_MANTISSA = np.int64((1 << 52) - 1)
_HIDDEN = np.int64(1 << 52)
_EXTRA = 4
"""Zero limbs below the dividend: 128 bits less the 62 of the divisor leave more than a float64 needs."""


@compiled()
def square_limbs_for(lowest: int, highest: int) -> int:
    """Give how many limbs hold any sum of fewer than 2**31 squares of values with bits in [lowest, highest]."""
    return (2 * (highest - lowest) + 2 + 31) // 32 + 2


@compiled()
def scratch_size(sum_limbs: int, square_limbs: int) -> int:
    """Give how many words `read_variance` (and a sum of so many limbs) needs to work in."""
    return sum_limbs + square_limbs + _length(sum_limbs, square_limbs)


@compiled()
def _length(sum_limbs: int, square_limbs: int) -> int:
    return max(2 * sum_limbs, square_limbs + 1) + _EXTRA


@compiled()
def _add_square(cell: NDArray[np.int64], start: int, magnitude: np.uint64, shift: int, sign: int) -> None:
    """Add sign * magnitude**2 * 2**shift to the limbs from `start` on."""
    low, high = magnitude & _LOW32, magnitude >> _32
    lowest, middle, highest = low * low, np.uint64(2) * high * low, high * high
    one = (lowest >> _32) + (middle & _LOW32)
    two = (one >> _32) + (middle >> _32) + (highest & _LOW32)
    three = (two >> _32) + (highest >> _32)
    limb, bits = start + (shift >> 5), np.uint64(shift & 31)
    over = np.uint64(0)
    for piece in (lowest & _LOW32, one & _LOW32, two & _LOW32, three):
        moved = (piece << bits) + over
        if moved != 0:
            cell[limb] += sign * np.int64(moved & _LOW32)
        over = moved >> _32
        limb += 1
    if over != 0:
        cell[limb] += sign * np.int64(over)


@compiled()
def add_square_float(cell: NDArray[np.int64], start: int, bits: int, base: int, sign: int) -> None:
    """Add the square of a float64, given as its bits, to the limbs from `start` on (or take it away: a sign of -1). What is not finite, `add_float` counts."""
    exponent = (bits >> 52) & 0x7FF
    mantissa = bits & _MANTISSA
    if exponent == 0x7FF or (exponent == 0 and mantissa == 0):
        return
    if exponent == 0:
        exponent = 1
    else:
        mantissa |= _HIDDEN
    shift = exponent - 1075 - base
    if shift < 0:  # the low bits are zeros: base is the lowest set bit of any value here
        mantissa >>= -shift
        shift = 0
    _add_square(cell, start, np.uint64(mantissa), 2 * shift, sign)


@compiled()
def add_square_integer(cell: NDArray[np.int64], start: int, value: int, sign: int) -> None:
    """Add the square of an int64 to the limbs from `start` on (or take it away: a sign of -1)."""
    magnitude = np.uint64(value) if value >= 0 else np.uint64(-(value + 1)) + np.uint64(1)
    _add_square(cell, start, magnitude, 0, sign)


@compiled()
def read_variance(
    cell: NDArray[np.int64], base: int, sum_limbs: int, square_limbs: int, scratch: NDArray[np.int64]
) -> float:
    """Round a partial's variance once, to the nearest float64. NaN below two values, and when one of them is not finite.

    Args:
        cell: a partial.
        base: exponent of the lowest bit of the sum's lowest limb.
        sum_limbs, square_limbs: how many limbs each has.
        scratch: shape (scratch_size(sum_limbs, square_limbs),).
    """
    count = np.uint64(cell[0])
    if cell[0] < 2 or cell[1] > 0 or cell[2] > 0 or cell[3] > 0:
        return np.nan
    total = scratch[:sum_limbs]
    squares = scratch[sum_limbs : sum_limbs + square_limbs]
    whole = scratch[sum_limbs + square_limbs :]
    carry(cell, total)
    carry(cell[sum_limbs:], squares)
    length = _length(sum_limbs, square_limbs)
    # count * squares - total * total, above the zero limbs. The first is never less.
    whole[:length] = 0
    over = np.uint64(0)
    for i in range(square_limbs):
        over += count * np.uint64(squares[i])
        whole[_EXTRA + i] = np.int64(over & _LOW32)
        over >>= _32
    whole[_EXTRA + square_limbs] = np.int64(over)
    for i in range(sum_limbs):
        if total[i] == 0:
            continue
        over = np.uint64(0)
        borrow = np.int64(0)
        place = _EXTRA + i
        for j in range(sum_limbs):
            over += np.uint64(total[i]) * np.uint64(total[j])
            left = whole[place] - np.int64(over & _LOW32) - borrow
            borrow = np.int64(1) if left < 0 else np.int64(0)
            whole[place] = left + (borrow << 32)
            over >>= _32
            place += 1
        while place < length and (over != 0 or borrow != 0):
            left = whole[place] - np.int64(over & _LOW32) - borrow
            borrow = np.int64(1) if left < 0 else np.int64(0)
            whole[place] = left + (borrow << 32)
            over >>= _32
            place += 1
    rest = _divide(whole, length, count)
    rest |= _divide(whole, length, count - np.uint64(1))
    return nearest(whole[:length], 2 * base - 32 * _EXTRA, rest != 0)


@compiled()
def _divide(limbs: NDArray[np.int64], length: int, by: np.uint64) -> np.uint64:
    """Divide limbs by a number below 2**32 in place; give the remainder."""
    rest = np.uint64(0)
    for i in range(length - 1, -1, -1):
        whole = (rest << _32) | np.uint64(limbs[i])
        limbs[i] = np.int64(whole // by)
        rest = whole % by
    return rest
