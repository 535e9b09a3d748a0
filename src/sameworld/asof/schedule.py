"""What happens between an entity's moments: which rows arrive, which leave, and where each window begins and ends. Worked out once for all aggregates.

A row version is used at a moment when `available < as_of <= superseded` and its event time lies in [at + start, at + end). (Strictly before, so a row
readable at the very moment is not used.) So a row arrives at the first moment known after it became readable, and leaves at the first one known after it
was superseded; and a window is a range of ranks, since rows are in order of event time. Most rows are readable before any window reaches them: those are
prompt, and take no part in the order of arrivals.
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
        prompt: shape (rows,), 1 for a row that is there at the first moment that any window reaches it, and so may count as there from the beginning.
        arriving: shape (rows,), from an entity's first row on: the ranks (places within the entity) of its other rows in the order in which they arrive.
        arrived: shape (moments,), how many of them have arrived by each moment.
        leaving, left: the same for rows that were superseded; `leaving` is empty when none ever is.
        edges: shape (offsets, moments), how many of the entity's rows have event times before at + offset.
    """

    row_starts: NDArray[np.int64]
    row_stops: NDArray[np.int64]
    moment_starts: NDArray[np.int64]
    prompt: NDArray[np.uint8]
    arriving: NDArray[np.int32]
    arrived: NDArray[np.int32]
    leaving: NDArray[np.int32]
    left: NDArray[np.int32]
    edges: NDArray[np.int32]


SCHEDULE = numba.types.NamedTuple(
    [
        numba.int64[::1],
        numba.int64[::1],
        numba.int64[::1],
        numba.uint8[::1],
        _ranks,
        _ranks,
        _ranks,
        _ranks,
        numba.int32[:, ::1],
    ],
    Schedule,
)
"""Its type, for kernels."""


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
    numba.int64[::1], numba.int64[::1], numba.uint8[::1], _ranks, _ranks, _ranks, _ranks, numba.int32[:, ::1],
)  # fmt: skip


@compiled()
def reached_from(
    event: NDArray[np.int64], low: int, high: int, at: NDArray[np.int64], begin: int, end: int, offset: int
) -> int:
    """Give the first of the rows low to high - 1 that a window from `offset` on can reach at one of the moments begin to end - 1."""
    return first_at_or_after(event, low, high, edge_time(at[begin:end].min(), offset))


@compiled()
def write_edges(
    event: NDArray[np.int64], first: int, stop: int, at: NDArray[np.int64], begin: int, end: int, offset: int, edges: NDArray[np.int32]
) -> None:  # fmt: skip
    """Write how many of the rows first to stop - 1 have event times before at + offset, at the moments begin to end - 1."""
    place, previous = first, BEGINNING
    for moment in range(begin, end):
        time = edge_time(at[moment], offset)
        if time >= previous and moment > begin:
            while place < stop and event[place] < time:
                place += 1
        else:
            place = first_at_or_after(event, first, stop, time)
        previous = time
        edges[moment] = place - first


@compiled()
def _in_buckets(
    ranks: NDArray[np.int32],
    buckets: NDArray[np.int32],
    count: int,
    order: NDArray[np.int32],
    sizes: NDArray[np.int32],
) -> None:
    """Write the first `count` of the ranks bucket by bucket, and turn the size of each bucket into where it ends."""
    place = np.int32(0)
    for i in range(sizes.shape[0]):
        size = sizes[i]
        sizes[i] = place
        place += size
    for i in range(count):
        order[sizes[buckets[i]]] = ranks[i]
        sizes[buckets[i]] += 1


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
    prompt: NDArray[np.uint8],
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
            low = reached_from(event, low, all_starts[entity + 1], at, begin, end, offsets[0])
            latest = edge_time(at[begin:end].max(), offsets[-1])
            high = first_at_or_after(event, low, all_starts[entity + 1], latest)
        row_starts[entity], row_stops[entity] = low, high
        longest = max(longest, high - low)
    supersedes, last = superseded.shape[0] > 0, offsets.shape[0] - 1
    late, arrives = np.empty(longest, np.int32), np.empty(longest, np.int32)
    gone, leaves = np.empty(longest * supersedes, np.int32), np.empty(longest * supersedes, np.int32)
    for entity in range(first_entity, last_entity):
        first, stop = row_starts[entity], row_stops[entity]
        begin, end = moment_starts[entity], moment_starts[entity + 1]
        if begin == end:
            continue
        for offset in range(offsets.shape[0]):
            write_edges(event, first, stop, at, begin, end, offsets[offset], edges[offset])
        rising = True  # so that windows reach a row at one moment and not before
        for moment in range(begin + 1, end):
            rising = rising and at[moment - 1] <= at[moment]
        arrived[begin:end] = 0
        if supersedes:
            left[begin:end] = 0
        come = went = 0
        done, near, last_known = first, begin, as_of[end - 1]
        for reached in range(begin, end if rising else begin + 1):
            upto = first + edges[last, reached] if rising else stop
            known = as_of[reached] if rising else BEGINNING
            others = 0
            for row in range(done, upto):
                is_prompt = available[row] < known
                prompt[row] = is_prompt
                others += not is_prompt
            for row in range(done, upto if others or supersedes else done):
                if available[row] >= last_known:
                    continue
                moment = reached
                if prompt[row] == 0:
                    moment = near = _first_after(as_of, reached, end, max(near, reached), available[row])
                if supersedes:
                    if superseded[row] < as_of[moment]:
                        prompt[row] = 0
                        continue
                    if superseded[row] < last_known:
                        leave = _first_after(as_of, moment, end, moment, superseded[row])
                        gone[went], leaves[went] = row - first, leave - begin
                        went += 1
                        left[leave] += 1
                if prompt[row] == 0:
                    late[come], arrives[come] = row - first, moment - begin
                    come += 1
                    arrived[moment] += 1
            done = upto
        _in_buckets(late, arrives, come, arriving[first:stop], arrived[begin:end])
        if supersedes:
            _in_buckets(gone, leaves, went, leaving[first:stop], left[begin:end])
