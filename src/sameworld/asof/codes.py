"""Small numbers for the different values of each entity, so that counting them is an array."""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

from sameworld.asof.compiled import compiled

_words = numba.types.Array(numba.int64, 1, "C", readonly=True)
_flags = numba.types.Array(numba.uint8, 1, "C", readonly=True)


@compiled(
    numba.types.UniTuple(numba.int64[::1], 2)(_words, _words, _flags))  # fmt: skip
def local_codes(
    starts: NDArray[np.int64], words: NDArray[np.int64], valid: NDArray[np.uint8]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Number the different words of each entity's valid rows from 0.

    Args:
        starts: shape (entities + 1,), where each entity's rows begin.
        words, valid: shape (rows,).

    Returns:
        The number of each row's word, 0 where a row is not valid; and how many different ones each entity has.
    """
    codes = np.zeros(words.shape[0], np.int64)
    distinct = np.zeros(starts.shape[0] - 1, np.int64)
    for entity in range(starts.shape[0] - 1):
        low, high = starts[entity], starts[entity + 1]
        if low == high:
            continue
        order = np.argsort(words[low:high])
        found = -1
        last = np.int64(0)
        for i in range(high - low):
            row = low + order[i]
            if valid[row] == 0:
                continue
            if found < 0 or words[row] != last:
                found += 1
                last = words[row]
            codes[row] = found
        distinct[entity] = found + 1
    return codes, distinct
