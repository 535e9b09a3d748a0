"""When a row version stops being the truth: the first moment at which a greater version of the same fact is readable."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sameworld.asof.aggregations import NEVER
from sameworld.asof.compiled import compiled


@compiled()
def superseded_at(same_as_previous: NDArray[np.bool_], available: NDArray[np.int64]) -> NDArray[np.int64]:
    """Give the time at which each row version is superseded.

    A version lives from its available time until then; when the two are equal it never lives, and a version that arrives after a greater one
    never lives either.

    Args:
        same_as_previous: shape (n,); rows sorted by (id, version, available, tie); whether a row has the id of the row before it.
        available: shape (n,), microseconds; NEVER for a version that is never readable, which supersedes nothing.

    Returns:
        shape (n,), microseconds; NEVER while nothing supersedes it.
    """
    count = available.shape[0]
    result = np.full(count, NEVER, np.int64)
    earliest = NEVER
    for i in range(count - 1, -1, -1):
        result[i] = earliest
        earliest = min(earliest, available[i])
        if not same_as_previous[i]:
            earliest = NEVER
    return result


SORTED_BY = "version, available_at, tie"
"""The order of a fact's versions, least first, as DuckDB sorts them; `order_of` is the same order for single rows."""


def order_of(version: int, available_at: int, tie: int) -> tuple[int, int, int]:
    """Give a row version's place among the versions of its fact."""
    return version, available_at, tie
