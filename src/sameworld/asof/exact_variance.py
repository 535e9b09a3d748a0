"""Exact sample variances of float64 and int64: sums of squares by limbs, as sums are in `exact`, and one rounding of the exact fraction at the end.

variance = (n * Q - S * S) / (n * (n - 1)), with n values, S their sum and Q the sum of their squares. All of it is whole numbers until the division, and
the remainder of that only decides the rounding. So values that differ in their last bits only lose nothing, and equal values have +0.0.

Layout of a partial (int64 cells): that of a sum, then the limbs of the squares: [count, NaNs, +infinities, -infinities, S 0, S 1, ..., Q 0, Q 1, ...]; limb
i of S counts units of 2**(base + 32 i), limb i of Q units of 2**(2 base + 32 i). Cells are merely added: partials combine by adding theirs, and a row
leaves one by adding it again with a sign of -1.

Source: the identity is the textbook's; floating-point code avoids it because it cancels, which whole numbers do not mind.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sameworld.asof.compiled import compiled
from sameworld.asof.exact import HEADER, carry, nearest

INTEGER_SUM_LIMBS = 3
INTEGER_SQUARE_LIMBS = 5  # (-2**63)**2 * 2**31 is below 2**160
_MANTISSA = np.int64((1 << 52) - 1)
_HIDDEN = np.int64(1 << 52)
_LOW32 = np.uint64((1 << 32) - 1)
_1, _32, _63 = np.uint64(1), np.uint64(32), np.uint64(63)
_ABOVE = 4
"""Limbs below the highest that are divided: 129 bits at least, of which the divisor's 62 leave 67, and a rounding needs 54."""
_ONE_DIVISOR = 1 << 16
"""As many values, n * (n - 1) is below 2**32 and divides in one go."""


@compiled()
def square_limbs_for(lowest: int, highest: int) -> int:
    """Give how many limbs hold any sum of fewer than 2**31 squares of values with bits in [lowest, highest]."""
    return (2 * (highest - lowest) + 2 + 31) // 32 + 1


@compiled()
def scratch_size(sum_limbs: int, square_limbs: int) -> int:
    """Give how many int64 `read_variance` needs to work in: S, S * S, and n * Q - S * S above zero limbs."""
    return sum_limbs + 2 * sum_limbs + _ABOVE + square_limbs + 1


@compiled(inline="always")
def _add_square(cell: NDArray[np.int64], limb: int, magnitude: int | np.int64, shift: int, sign: int) -> None:
    """Add sign * magnitude**2 * 2**shift at cell[limb], for a magnitude of at most 2**63 and a shift below 32."""
    whole, by = np.uint64(magnitude), np.uint64(shift)
    low, high = whole & _LOW32, whole >> _32
    middle = (low * high << _1) + (low * low >> _32)  # below 2**64 even for 2**63
    above = high * high + (middle >> _32)
    below = whole * whole  # its lower 64 bits
    # The square is above * 2**64 + below; shifted it spans five limbs, each piece below 2**32. A partial may end before those that are zero.
    second = (above << by) | (below >> _1 >> (_63 - by))
    third = above >> _1 >> (_63 - by)
    first = below << by
    cell[limb] += sign * np.int64(first & _LOW32)
    cell[limb + 1] += sign * np.int64(first >> _32)
    piece = np.int64(second & _LOW32)
    if piece != 0:
        cell[limb + 2] += sign * piece
    piece = np.int64(second >> _32)
    if piece != 0:
        cell[limb + 3] += sign * piece
    piece = np.int64(third)
    if piece != 0:
        cell[limb + 4] += sign * piece


@compiled(inline="always")
def add_square_float(cell: NDArray[np.int64], start: int, bits: int, base: int, sign: int) -> None:
    """Add the square of one float64, given as its bits, to the limbs from `start` on (or take it away: a sign of -1).

    NaN and infinities add nothing: `exact.add_float`, which every row goes to as well, counts them.
    """
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
    _add_square(cell, start + (shift >> 4), mantissa, 2 * (shift & 15), sign)


@compiled(inline="always")
def add_square_integer(cell: NDArray[np.int64], start: int, value: int, sign: int) -> None:
    """Add the square of one int64 to the limbs from `start` on (or take it away: a sign of -1)."""
    magnitude = -value if value < 0 else value  # -(-2**63) is -2**63 again, whose bits are those of 2**63
    _add_square(cell, start, magnitude, 0, sign)


@compiled()
def _square(number: NDArray[np.int64], product: NDArray[np.int64]) -> int:
    """Write number * number into `product` and give how many limbs that may fill. All limbs are in [0, 2**32)."""
    length = number.shape[0]
    while length > 0 and number[length - 1] == 0:
        length -= 1
    product[: 2 * length] = 0
    for i in range(length):
        factor = np.uint64(number[i])
        over = np.uint64(0)
        for j in range(length):
            over += factor * np.uint64(number[j]) + np.uint64(product[i + j])  # 2**64 - 1 at most
            product[i + j] = np.int64(over & _LOW32)
            over >>= _32
        product[i + length] = np.int64(over)
    return 2 * length


@compiled()
def _divide(number: NDArray[np.int64], by: int) -> bool:
    """Divide limbs by a number in [1, 2**32) in place and give whether anything is left over."""
    divisor, rest = np.uint64(by), np.uint64(0)
    for i in range(number.shape[0] - 1, -1, -1):
        rest = (rest << _32) | np.uint64(number[i])
        quotient = rest // divisor
        number[i] = np.int64(quotient)
        rest -= quotient * divisor
    return rest != 0


@compiled()
def read_variance(
    cell: NDArray[np.int64], base: int, sum_limbs: int, square_limbs: int, scratch: NDArray[np.int64]
) -> float:
    """Round a partial's sample variance once, to the nearest float64. NaN below two values, and when one of them is not finite.

    Args:
        cell: a partial.
        base: exponent of the lowest bit of the sum's lowest limb.
        sum_limbs, square_limbs: how many limbs each of its sums has.
        scratch: shape (scratch_size(sum_limbs, square_limbs),) or more.
    """
    count = cell[0]
    if count < 2 or cell[1] > 0 or cell[2] > 0 or cell[3] > 0:
        return np.nan
    total, product, rest = scratch[:sum_limbs], scratch[sum_limbs : 3 * sum_limbs], scratch[3 * sum_limbs :]
    carry(cell, total)
    filled = _square(total, product)
    # n * Q - S * S, never negative, limb by limb; each limb of Q is carried, multiplied and diminished in one go.
    rest[:_ABOVE] = 0
    n, many, over, borrow = np.uint64(count), np.int64(0), np.uint64(0), np.uint64(0)
    squares = HEADER + sum_limbs
    top = -1
    for i in range(square_limbs + 1):
        if i < square_limbs:
            many += cell[squares + i]
            over += n * (np.uint64(many) & _LOW32)
            many >>= 32
        left = (over & _LOW32) - borrow
        if i < filled:
            left -= np.uint64(product[i])
        borrow = left >> _63
        over >>= _32
        rest[_ABOVE + i] = np.int64(left & _LOW32)
        if left & _LOW32 != 0:
            top = i
    if top < 0:
        return 0.0
    # The highest limbs decide the float; of those below it only matters whether they are all zeros.
    sticky = False
    for i in range(_ABOVE, top):
        if rest[i] != 0:
            sticky = True
            break
    highest = rest[top : top + _ABOVE + 1]
    if count <= _ONE_DIVISOR:
        sticky |= _divide(highest, count * (count - 1))
    else:
        sticky |= _divide(highest, count)
        sticky |= _divide(highest, count - 1)
    return nearest(highest, 2 * base + 32 * (top - _ABOVE), sticky)
