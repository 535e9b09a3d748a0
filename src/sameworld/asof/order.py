"""Rows in any order -> rows in the kernel's. Engines deliver rows; this is the only place that sorts them.

Rows are first put into their groups (entities; for facts, buckets of ids) by counting, then each group is sorted by itself, so the cost is that of
sorting many small runs, in as many threads as wanted.
"""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

from sameworld.asof.compiled import compiled
from sameworld.asof.threads import Threads

KEYS = 5
"""How many columns an order may have; those it does not need are empty."""
NO_KEY = np.zeros(0, np.int64)

_words = numba.types.Array(numba.int64, 1, "C", readonly=True)
_keys = numba.types.UniTuple(_words, KEYS)


@compiled(numba.int64[::1](_words, numba.int64))
def group_starts(group: NDArray[np.int64], groups: int) -> NDArray[np.int64]:
    """Give where each group's rows begin once they are together, shape (groups + 1,); rows of group -1 belong to none."""
    starts = np.zeros(groups + 1, np.int64)
    for row in range(group.shape[0]):
        if group[row] >= 0:
            starts[group[row] + 1] += 1
    for i in range(groups):
        starts[i + 1] += starts[i]
    return starts


@compiled(numba.int64[::1](_words, _words))
def by_group(group: NDArray[np.int64], starts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Give the rows group by group, within one as they came."""
    place = starts.copy()
    order = np.empty(starts[-1], np.int64)
    for row in range(group.shape[0]):
        if group[row] >= 0:
            order[place[group[row]]] = row
            place[group[row]] += 1
    return order


@compiled()
def _refine(
    order: NDArray[np.int64], low: int, high: int, keys: NDArray[np.int64], local: NDArray[np.int64]
) -> bool:
    """Sort order[low:high] by the keys of the rows it names; give whether some of the keys are equal. `local` is scratch."""
    length = high - low
    rising = True
    for i in range(length):
        local[i] = keys[order[low + i]]
        rising = rising and (i == 0 or local[i - 1] <= local[i])
    if not rising and length < 48:  # insertion
        for i in range(1, length):
            key, row = local[i], order[low + i]
            j = i - 1
            while j >= 0 and local[j] > key:
                local[j + 1] = local[j]
                order[low + j + 1] = order[low + j]
                j -= 1
            local[j + 1] = key
            order[low + j + 1] = row
    elif not rising:
        by = np.argsort(local[:length])
        kept = order[low:high].copy()
        keys_kept = local[:length].copy()
        for i in range(length):
            order[low + i] = kept[by[i]]
            local[i] = keys_kept[by[i]]
    for i in range(1, length):  # noqa: SIM110 # the compiler has no generators
        if local[i] == local[i - 1]:  # the compiler has no generators
            return True
    return False


@compiled(
    numba.void(numba.int64[::1], _words, numba.int64, numba.int64, _keys))  # fmt: skip
def sort_groups(
    order: NDArray[np.int64],
    starts: NDArray[np.int64],
    first: int,
    last: int,
    keys: tuple[NDArray[np.int64], ...],
) -> None:
    """Sort the rows of groups first to last - 1 in place, by the first key, then the second and so on.

    Args:
        order, starts: from `by_group` and `group_starts`.
        keys: KEYS columns of the rows as they came; an empty one orders nothing.
    """
    longest = 0
    for group in range(first, last):
        longest = max(longest, starts[group + 1] - starts[group])
    local = np.empty(longest, np.int64)
    for group in range(first, last):
        low, high = starts[group], starts[group + 1]
        equal = high - low > 1
        for level in range(KEYS):
            if not equal or keys[level].shape[0] == 0:
                continue
            equal = False
            i = low
            while i < high:
                j = i + 1
                while j < high:
                    same = True
                    for above in range(level):
                        column = keys[above]
                        if column.shape[0] and column[order[j]] != column[order[i]]:
                            same = False
                            break
                    if not same:
                        break
                    j += 1
                if j - i > 1:
                    equal = _refine(order, i, j, keys[level], local) or equal
                i = j


def sorted_order(
    group: NDArray[np.int64], groups: int, keys: tuple[NDArray[np.int64], ...], run: Threads
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Give the rows in order and where each group's begin.

    Args:
        group: shape (rows,), numbers from 0; -1 for rows that belong to none and are left out.
        groups: how many there are.
        keys: up to KEYS columns, shape (rows,) or empty.
        run: calls over ranges of groups.
    """
    starts = group_starts(group, groups)
    order = by_group(group, starts)
    padded = (*keys, *[NO_KEY] * (KEYS - len(keys)))
    run(np.diff(starts), lambda first, last: sort_groups(order, starts, first, last, padded))
    return order, starts
