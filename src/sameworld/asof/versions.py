"""When a row version stops being the truth: the first moment at which a greater version of the same fact is readable; and whether it counts at all."""

from __future__ import annotations

import numpy as np
from numba.extending import register_jitable
from numpy.typing import NDArray

from sameworld.asof.aggregations import NEVER
from sameworld.asof.compiled import compiled


@register_jitable
def closes_at(first_available: int, within: int) -> int:
    """Give the time from which on versions of a fact do not count.

    Args:
        first_available: when its first version became readable; NEVER when none ever does.
        within: for how long corrections count, in microseconds; NEVER for a source that takes them for ever.

    >>> closes_at(1_000, 30), closes_at(-1_000, NEVER) == closes_at(NEVER - 30, 30) == NEVER
    (1030, True)
    """
    # The sum may be beyond what 64 bits hold; then no time is.
    if within == NEVER or first_available >= NEVER - within:
        return NEVER
    return first_available + within


@compiled()
def superseded_at(
    same_as_previous: NDArray[np.bool_], available: NDArray[np.int64], within: int = NEVER
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Give the time from which on each row version counts, the time at which it is superseded, and the first available time of its fact.

    A version lives from its available time until it is superseded; when the two are equal it never lives, and a version that arrives after a greater
    one never lives either. A version that becomes readable when its fact has closed is as one that is never readable.

    Args:
        same_as_previous: shape (n,); rows sorted by (id, version, available, tie); whether a row has the id of the row before it.
        available: shape (n,), microseconds; NEVER for a version that is never readable, which supersedes nothing.
        within: for how long corrections count: see `closes_at`.

    Returns:
        available: shape (n,), microseconds; as given, but NEVER for a version that came too late.
        superseded: shape (n,), microseconds; NEVER while nothing supersedes it.
        first_available: shape (n,), microseconds; NEVER when no version of the fact is ever readable.
    """
    count = available.shape[0]
    counted = available.copy()
    superseded = np.full(count, NEVER, np.int64)
    first = np.empty(count, np.int64)
    end = count
    while end > 0:
        begin = end - 1
        earliest = int(available[begin])
        while begin > 0 and same_as_previous[begin]:
            begin -= 1
            earliest = min(earliest, int(available[begin]))
        closes = closes_at(earliest, within)
        readable = NEVER
        for i in range(end - 1, begin - 1, -1):
            first[i] = earliest
            if counted[i] >= closes:
                counted[i] = NEVER
            superseded[i] = readable
            readable = min(readable, counted[i])
        end = begin
    return counted, superseded, first


SORTED_BY = "version, available_at, tie"
"""The order of a fact's versions, least first, as DuckDB sorts them; `order_of` is the same order for single rows."""


def order_of(version: int, available_at: int, tie: int) -> tuple[int, int, int]:
    """Give a row version's place among the versions of its fact."""
    return version, available_at, tie
