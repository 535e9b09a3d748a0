"""What happens between an entity's moments: which rows arrive, which leave, and where each window begins and ends. Worked out once for all aggregates.

A row version is used at a moment when `available < as_of <= superseded` and its event time lies in [at + start, at + end). (Strictly before, so a row
readable at the very moment is not used.) So a row arrives at the first moment known after it became readable, and leaves at the first one known after it
was superseded; and a window is a range of ranks, since rows are in order of event time.
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from sameworld.asof.aggregations import BEGINNING, NEVER
from sameworld.asof.compiled import compiled

_words = numba.types.Array(numba.int64, 1, "C", readonly=True)
_ranks = numba.int32[::1]


class Schedule(NamedTuple):
    """All moments of some entities.

    Args:
        row_starts, row_stops: shape (entities,), which rows of each entity any window can reach: those whose event times lie between the earliest start
            and the latest end. None for an entity without moments.
        moment_starts: shape (entities + 1,), where each entity's moments begin; an entity's moments are in order of `as_of`.
        arriving: shape (rows,), from an entity's first row on: the ranks (places within the entity) of its rows in the order in which they arrive.
        arrived: shape (moments,), how many of them have arrived by each moment.
        leaving, left: the same for rows that were superseded; `leaving` is empty when none ever is.
        edges: shape (offsets, moments), how many of the entity's rows have event times before at + offset.
    """

    row_starts: NDArray[np.int64]
    row_stops: NDArray[np.int64]
    moment_starts: NDArray[np.int64]
    arriving: NDArray[np.int32]
    arrived: NDArray[np.int32]
    leaving: NDArray[np.int32]
    left: NDArray[np.int32]
    edges: NDArray[np.int32]


@compiled()
def first_at_or_after(event: NDArray[np.int64], low: int, high: int, time: int) -> int:
    """Give the first of the rows low to high - 1 whose event time is not before `time`."""
    while low < high:
        middle = (low + high) >> 1
        if event[middle] < time:
            low = middle + 1
        else:
            high = middle
    return low


@compiled()
def edge_time(at: int, offset: int) -> int:
    """`at + offset`, kept inside int64."""
    if offset == BEGINNING:
        return BEGINNING
    # Asked before adding: the compiler takes it that sums do not overflow, and drops a check made after.
    if offset < 0 and at < BEGINNING - offset:
        return BEGINNING
    if offset > 0 and at > NEVER - offset:
        return NEVER
    return at + offset


@compiled()
def _first_after(times: NDArray[np.int64], low: int, high: int, near: int, time: int) -> int:
    """Give the first of low to high - 1 whose time is after `time`, looking first around `near`."""
    step = 1
    if near < high and times[near] <= time:
        low = near + 1
        while low + step < high and times[low + step] <= time:
            low += step
            step *= 2
        high = min(high, low + step + 1)
    else:
        high = near
        while high - step >= low and times[high - step] > time:
            high -= step
            step *= 2
        low = max(low, high - step)
    while low < high:
        middle = (low + high) >> 1
        if times[middle] <= time:
            low = middle + 1
        else:
            high = middle
    return low


_SIGNATURE = numba.void(
    _words, _words, numba.int64, numba.int64, _words, _words, _words, _words, _words, _words,
    numba.int64[::1], numba.int64[::1], _ranks, _ranks, _ranks, _ranks, numba.int32[:, ::1],
)  # fmt: skip


@compiled()
def _in_buckets(
    bucket: NDArray[np.int32], rows: int, order: NDArray[np.int32], counts: NDArray[np.int32]
) -> None:
    """Write the ranks bucket by bucket (-1: none) and turn the counts of each bucket into where it ends."""
    place = np.int32(0)
    for i in range(counts.shape[0]):
        size = counts[i]
        counts[i] = place
        place += size
    for rank in range(rows):
        if bucket[rank] >= 0:
            order[counts[bucket[rank]]] = rank
            counts[bucket[rank]] += 1


@compiled(_SIGNATURE)
def schedule_entities(
    all_starts: NDArray[np.int64],
    moment_starts: NDArray[np.int64],
    first_entity: int,
    last_entity: int,
    event: NDArray[np.int64],
    available: NDArray[np.int64],
    superseded: NDArray[np.int64],
    as_of: NDArray[np.int64],
    at: NDArray[np.int64],
    offsets: NDArray[np.int64],
    row_starts: NDArray[np.int64],
    row_stops: NDArray[np.int64],
    arriving: NDArray[np.int32],
    arrived: NDArray[np.int32],
    leaving: NDArray[np.int32],
    left: NDArray[np.int32],
    edges: NDArray[np.int32],
) -> None:
    """Fill in a `Schedule` for entities first_entity to last_entity - 1.

    Args:
        all_starts: shape (entities + 1,), where each entity's rows begin.
        event, available, superseded: shape (rows,), microseconds since 1970; `superseded` may be empty when no row ever is.
        as_of, at: shape (moments,), the time of knowing and the time that windows refer to.
        offsets: where windows begin and end, relative to `at`, in microseconds, rising; BEGINNING for all history.
    """
    longest = 0
    for entity in range(first_entity, last_entity):
        begin, end = moment_starts[entity], moment_starts[entity + 1]
        low = high = all_starts[entity]
        if begin < end:
            earliest = edge_time(at[begin:end].min(), offsets[0])
            latest = edge_time(at[begin:end].max(), offsets[-1])
            low = first_at_or_after(event, low, all_starts[entity + 1], earliest)
            high = first_at_or_after(event, low, all_starts[entity + 1], latest)
        row_starts[entity], row_stops[entity] = low, high
        longest = max(longest, high - low)
    arrives = np.empty(longest, np.int32)
    leaves = np.empty(longest if superseded.shape[0] else 0, np.int32)
    for entity in range(first_entity, last_entity):
        first, stop = row_starts[entity], row_stops[entity]
        begin, end = moment_starts[entity], moment_starts[entity + 1]
        if begin == end:
            continue
        for offset in range(offsets.shape[0]):
            place, previous = first, BEGINNING
            for moment in range(begin, end):
                time = edge_time(at[moment], offsets[offset])
                if time >= previous and moment > begin:
                    while place < stop and event[place] < time:
                        place += 1
                else:
                    place = first_at_or_after(event, first, stop, time)
                previous = time
                edges[offset, moment] = place - first
        arrived[begin:end] = 0
        if superseded.shape[0]:
            left[begin:end] = 0
        near = begin
        last_known = as_of[end - 1]
        for row in range(first, stop):
            arrives[row - first] = -1
            if available[row] >= last_known:
                continue
            near = _first_after(as_of, begin, end, near, available[row])
            if superseded.shape[0]:
                leaves[row - first] = -1
                if superseded[row] < as_of[near]:
                    continue
                if superseded[row] < last_known:
                    gone = _first_after(as_of, near, end, near, superseded[row])
                    leaves[row - first] = gone - begin
                    left[gone] += 1
            arrives[row - first] = near - begin
            arrived[near] += 1
        _in_buckets(arrives, stop - first, arriving[first:stop], arrived[begin:end])
        if superseded.shape[0]:
            for rank in range(stop - first):
                if arrives[rank] < 0:
                    leaves[rank] = -1
            _in_buckets(leaves, stop - first, leaving[first:stop], left[begin:end])
