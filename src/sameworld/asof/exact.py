"""Exact sums of float64: a number is a few 32-bit limbs above a base exponent, so adding loses nothing and the order of adding does not matter.

Rounding happens once, when a sum is read (to nearest, ties to even). NaN gives NaN, infinities of both signs give NaN, one sign gives that infinity,
and a sum of nothing but zeros is +0.0. Beyond the largest float64 the result is an infinity, as rounding to nearest has it.

Layout of a partial (int64 cells): [count, NaNs, +infinities, -infinities, limb 0, limb 1, ...]; limb i counts units of 2**(base + 32 i) and may grow to
2**31 terms before a carry is needed, so adding is limb by limb.

Source: the idea of a long accumulator is Kulisch's (U. Kulisch, "Computer Arithmetic and Validity", 2008).
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from sameworld.asof.compiled import compiled

HEADER = 4
_MANTISSA = np.int64((1 << 52) - 1)
_HIDDEN = np.int64(1 << 52)
_LOW32 = np.int64((1 << 32) - 1)
_SMALLEST = -1022  # the exponent of the smallest normal float64
_TOP = np.uint64(1 << 63)
CANONICAL_NAN = 0x7FF8000000000000


@compiled()
def exponents_of(
    bits: NDArray[np.int64], valid: NDArray[Any], mask: int, low: int, high: int
) -> tuple[int, int]:
    """Give the exponent of the lowest set bit and of the highest over the finite non-zero values of rows low to high - 1, or (0, 0).

    Args:
        bits: shape (n,), float64 values viewed as int64.
        valid: shape (n,); a row's value counts when a bit of `mask` is set in it.
    """
    lowest, highest, found = 0, 0, False
    for i in range(low, high):
        if valid[i] & mask == 0:
            continue
        exponent = (bits[i] >> 52) & 0x7FF
        mantissa = bits[i] & _MANTISSA
        if exponent == 0x7FF or (exponent == 0 and mantissa == 0):
            continue
        if exponent == 0:
            exponent = 1
        else:
            mantissa |= _HIDDEN
        highest = max(highest, exponent - 1023) if found else exponent - 1023
        least = exponent - 1075
        # So many of its lowest bits must be zeros if none is below the lowest of the others.
        below = lowest - least if found else 64
        if below > 0 and (below > 52 or mantissa & ((np.int64(1) << below) - 1) != 0):
            while mantissa & 1 == 0:
                mantissa >>= 1
                least += 1
            lowest = min(lowest, least) if found else least
        found = True
    return lowest, highest


_SIGNATURE = numba.types.UniTuple(numba.int64, 2)(
    numba.types.Array(numba.int64, 1, "C", readonly=True),
    numba.types.Array(numba.uint8, 1, "C", readonly=True),
)


@compiled(_SIGNATURE)
def exponent_range(bits: NDArray[np.int64], valid: NDArray[np.uint8]) -> tuple[int, int]:
    """Give `exponents_of` over all values; `valid` is 1 where one is not null."""
    return exponents_of(bits, valid, 1, 0, bits.shape[0])


@compiled()
def limbs_for(lowest: int, highest: int) -> int:
    """Give how many limbs hold any sum of fewer than 2**31 values with bits in [lowest, highest]."""
    return (highest - lowest + 1 + 31) // 32 + 2


@compiled(inline="always")
def add_float(cell: NDArray[np.int64], bits: int, base: int, sign: int) -> None:
    """Add one float64, given as its bits, to a partial (or take it away again: a sign of -1)."""
    cell[0] += sign
    exponent = (bits >> 52) & 0x7FF
    mantissa = bits & _MANTISSA
    if exponent == 0x7FF:
        if mantissa != 0:
            cell[1] += sign
        elif bits < 0:
            cell[3] += sign
        else:
            cell[2] += sign
        return
    if exponent == 0:
        if mantissa == 0:
            return
        exponent = 1
    else:
        mantissa |= _HIDDEN
    shift = exponent - 1075 - base
    if shift < 0:  # the low bits are zeros: base is the lowest set bit of any value here
        mantissa >>= -shift
        shift = 0
    limb = HEADER + (shift >> 5)
    shift &= 31
    # 53 bits shifted by up to 31 span three limbs; each piece is below 2**32.
    low = (mantissa & _LOW32) << shift
    high = (mantissa >> 32) << shift
    first = low & _LOW32
    second = (low >> 32) + (high & _LOW32)
    third = high >> 32
    if bits < 0:
        sign = -sign
    cell[limb] += sign * first
    cell[limb + 1] += sign * second
    cell[limb + 2] += sign * third


@compiled(inline="always")
def add_integer(cell: NDArray[np.int64], value: int, sign: int) -> None:
    """Add one int64 to a partial whose base is 0 (or take it away again: a sign of -1)."""
    cell[0] += sign
    cell[HEADER] += sign * (value & _LOW32)
    cell[HEADER + 1] += sign * (value >> 32)


@compiled()
def carry(cell: NDArray[np.int64], limbs: NDArray[np.int64]) -> bool:
    """Write the magnitude of a partial's sum into `limbs` (each in [0, 2**32)) and give whether the sum is negative."""
    count = limbs.shape[0]
    over = np.int64(0)
    for i in range(count):
        total = cell[HEADER + i] + over
        over = total >> 32
        limbs[i] = total & _LOW32
    if over >= 0:
        return False
    borrow = np.int64(1)
    for i in range(count):
        total = (limbs[i] ^ _LOW32) + borrow
        limbs[i] = total & _LOW32
        borrow = total >> 32
    return True


@compiled()
def nearest(limbs: NDArray[Any], base: int, more: bool) -> float:
    """Give the float64 nearest to a magnitude; ties to even, and an infinity beyond the largest.

    Args:
        limbs: shape (n,), each in [0, 2**32).
        base: exponent of the lowest limb's lowest bit.
        more: whether the magnitude is a little more than the limbs say, by less than their lowest bit.
    """
    top = limbs.shape[0] - 1
    while top >= 0 and limbs[top] == 0:
        top -= 1
    if top < 0:
        return 0.0
    # Take the top three limbs (65 to 96 bits); whatever lies below only matters as "more than nothing".
    first = np.uint64(limbs[top])
    second = np.uint64(limbs[top - 1]) if top >= 1 else np.uint64(0)
    third = np.uint64(limbs[top - 2]) if top >= 2 else np.uint64(0)
    sticky = more
    for i in range(top - 2):
        if limbs[i] != 0:
            sticky = True
            break
    length = 0
    rest = first
    while rest != 0:
        rest >>= np.uint64(1)
        length += 1
    # 64 bits beginning with the highest set bit.
    spare = np.uint64(32 - length)
    head = (first << np.uint64(32)) | second
    if spare > 0:
        head = (head << spare) | (third >> (np.uint64(32) - spare))
    if (third << spare) & np.uint64(0xFFFFFFFF) != 0:
        sticky = True
    exponent = base + 32 * top + length - 64  # of the lowest of those 64 bits
    drop = 11 + max(_SMALLEST - (exponent + 63), 0)  # fewer bits are kept below the normal range
    if drop > 64:
        return 0.0
    if drop == 64:
        kept = np.uint64(1) if head > _TOP or sticky else np.uint64(0)
    else:
        kept = head >> np.uint64(drop)
        dropped = head & ((np.uint64(1) << np.uint64(drop)) - np.uint64(1))
        half = np.uint64(1) << np.uint64(drop - 1)
        if dropped > half or (dropped == half and (sticky or kept & np.uint64(1) != 0)):
            kept += np.uint64(1)
    return math.ldexp(float(kept), exponent + drop)


@compiled()
def read_float(cell: NDArray[np.int64], base: int, limbs: NDArray[np.int64]) -> float:
    """Round a partial's sum once, to the nearest float64.

    Args:
        cell: a partial.
        base: exponent of the lowest limb's lowest bit.
        limbs: scratch, shape (number of limbs,).
    """
    if cell[1] > 0 or (cell[2] > 0 and cell[3] > 0):
        return np.nan
    if cell[2] > 0:
        return np.inf
    if cell[3] > 0:
        return -np.inf
    negative = carry(cell, limbs)
    value = nearest(limbs, base, False)
    return -value if negative else value


@compiled()
def read_integer(cell: NDArray[np.int64], limbs: NDArray[np.int64]) -> tuple[int | np.int64, bool]:
    """Give a partial's sum as an int64 and whether it fits."""
    negative = carry(cell, limbs)
    for i in range(2, limbs.shape[0]):
        if limbs[i] != 0:
            return 0, False
    low = np.uint64(limbs[0]) | (np.uint64(limbs[1]) << np.uint64(32))
    edge = np.uint64(1) << np.uint64(63)
    if low > edge or (low == edge and not negative):
        return 0, False
    if negative:
        return (np.int64(-1) - np.int64(low - np.uint64(1))), True
    return np.int64(low), True
