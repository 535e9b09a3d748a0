"""stub"""

import numba


def square_limbs_for(lo, hi):
    return (2 * hi + 1 - 2 * lo + 1 + 31) // 32 + 2


@numba.njit(cache=True, nogil=True)
def scratch_size(a, b):
    return max(a + b, 1) * 4 + 8


@numba.njit(cache=True, nogil=True)
def add_square_float(cell, start, bits, base, sign):
    pass


@numba.njit(cache=True, nogil=True)
def add_square_integer(cell, start, value, sign):
    pass


@numba.njit(cache=True, nogil=True)
def read_variance(cell, base, a, b, scratch):
    return 0.0
