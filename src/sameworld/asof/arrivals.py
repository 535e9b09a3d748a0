"""What of a schedule is the same wherever windows begin, as long as they end alike: which rows come and go between moments. Small enough to be kept, so
that one more window only has to find where it begins.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

from sameworld.asof.compiled import compiled
from sameworld.asof.schedule import SCHEDULE, Schedule, reached_from, write_edges

_words = numba.types.Array(numba.int64, 1, "C", readonly=True)
_ranks = numba.types.Array(numba.int32, 1, "C", readonly=True)
_own = numba.int32[::1]
NO_RANKS = np.zeros(0, np.int32)


@dataclass(frozen=True)
class Listed:
    """Rows of some entities that come (or go) at some moment.

    Args:
        starts: shape (entities + 1,), where each entity's begin in `ranks`.
        ranks: places among all rows of the entity: in the order in which they come; those that never come are the last.
        done: shape (moments,), how many of the entity's have come by each moment; empty when none ever does.
    """

    starts: NDArray[np.int64]
    ranks: NDArray[np.int32]
    done: NDArray[np.int32]

    def of(self, first: int, last: int, low: int, high: int) -> Listed:
        """Give those of entities first to last - 1, whose moments are low to high - 1."""
        return Listed(self.starts[first : last + 1], self.ranks, self.done[low:high])


@dataclass(frozen=True)
class Arrivals:
    """The rows that windows with one end can reach, entity by entity.

    Args:
        late: rows that are not there when a window first reaches them.
        gone: rows that are superseded after that.
        ends: shape (moments,), how many of the entity's rows have event times before at + end.
    """

    late: Listed
    gone: Listed
    ends: NDArray[np.int32]

    def of(self, first: int, last: int, low: int, high: int) -> Arrivals:
        """Give those of entities first to last - 1, whose moments are low to high - 1."""
        bounds = (first, last, low, high)
        return Arrivals(self.late.of(*bounds), self.gone.of(*bounds), self.ends[low:high])


def nobody_arrives(entities: int) -> Arrivals:
    """Give the arrivals of some entities without moments."""
    none = Listed(np.zeros(entities + 1, np.int64), NO_RANKS, NO_RANKS)
    return Arrivals(none, none, NO_RANKS)


def arrivals_in(schedule: Schedule) -> Arrivals:
    """Take a schedule's arrivals out of it; its windows have no beginning, and end alike. What is prompt in it is lost."""
    starts = np.zeros(schedule.row_starts.shape[0] + 1, np.int64)
    counted = np.zeros_like(starts)
    _count(schedule, starts, counted)
    late, gone = np.empty(starts[-1], np.int32), np.empty(counted[-1], np.int32)
    _list(schedule, starts, counted, late, gone)
    return Arrivals(
        Listed(starts, late, schedule.arrived), Listed(counted, gone, schedule.left), schedule.edges[-1]
    )


@compiled(numba.void(SCHEDULE, numba.int64[::1], numba.int64[::1]))
def _count(schedule: Schedule, starts: NDArray[np.int64], counted: NDArray[np.int64]) -> None:
    """Write where each entity's rows that are not prompt begin, and those that leave."""
    for entity in range(schedule.row_starts.shape[0]):
        end = schedule.moment_starts[entity + 1]
        late = left = 0
        if schedule.moment_starts[entity] < end:
            for row in range(schedule.row_starts[entity], schedule.row_stops[entity]):
                late += schedule.prompt[row] == 0
            if schedule.left.shape[0]:
                left = schedule.left[end - 1]
        starts[entity + 1] = starts[entity] + late
        counted[entity + 1] = counted[entity] + left


@compiled(numba.void(SCHEDULE, _words, _words, _own, _own))
def _list(
    schedule: Schedule,
    starts: NDArray[np.int64],
    counted: NDArray[np.int64],
    late: NDArray[np.int32],
    gone: NDArray[np.int32],
) -> None:
    for entity in range(schedule.row_starts.shape[0]):
        first, place, end = schedule.row_starts[entity], starts[entity], schedule.moment_starts[entity + 1]
        if schedule.moment_starts[entity] == end:
            continue
        for i in range(schedule.arrived[end - 1]):
            late[place] = schedule.arriving[first + i]
            schedule.prompt[first + late[place]] = 1
            place += 1
        for row in range(first, schedule.row_stops[entity]):
            if schedule.prompt[row] == 0:
                late[place] = row - first
                place += 1
        for i in range(counted[entity + 1] - counted[entity]):
            gone[counted[entity] + i] = schedule.leaving[first + i]


@compiled()
def _come(
    ranks: NDArray[np.int32], low: int, high: int, done: NDArray[np.int32], begin: int, end: int,
    shift: int, most: int, order: NDArray[np.int32], upto: NDArray[np.int32],
) -> bool:  # fmt: skip
    """Write the ranks low to high - 1 that come, as ranks from `shift` on, and how many have come by each moment; give whether all lie below `most`."""
    count, at = 0, low
    for moment in range(begin, end):
        if done[moment] > high - low:
            return False
        while at < low + done[moment]:
            rank = ranks[at]
            if rank < 0 or rank >= most:
                return False
            if rank >= shift:
                if count == order.shape[0]:
                    return False
                order[count] = rank - shift
                count += 1
            at += 1
        upto[moment] = count
    return True


@compiled(
    numba.boolean(
        _words, _words, numba.int64, numba.int64, _words, _words, _words, _words, _ranks, _ranks, _words, _ranks, _ranks, _ranks,
        numba.int64[::1], numba.int64[::1], numba.uint8[::1], _own, _own, _own, _own, numba.int32[:, ::1],
    ))  # fmt: skip
def recall_entities(
    all_starts: NDArray[np.int64],
    moment_starts: NDArray[np.int64],
    first_entity: int,
    last_entity: int,
    event: NDArray[np.int64],
    at: NDArray[np.int64],
    offsets: NDArray[np.int64],
    late_starts: NDArray[np.int64],
    late: NDArray[np.int32],
    late_done: NDArray[np.int32],
    gone_starts: NDArray[np.int64],
    gone: NDArray[np.int32],
    gone_done: NDArray[np.int32],
    ends: NDArray[np.int32],
    row_starts: NDArray[np.int64],
    row_stops: NDArray[np.int64],
    prompt: NDArray[np.uint8],
    arriving: NDArray[np.int32],
    arrived: NDArray[np.int32],
    leaving: NDArray[np.int32],
    left: NDArray[np.int32],
    edges: NDArray[np.int32],
) -> bool:
    """Fill in a `Schedule` as `schedule_entities` does, of arrivals for the same end.

    Args:
        late_starts, late, late_done, gone_starts, gone, gone_done, ends: see `Arrivals`.
        Others: as in `schedule_entities`.

    Returns:
        Whether the arrivals are of such rows and moments; where not, nothing outside of them was touched.
    """
    last = offsets.shape[0] - 1
    for entity in range(first_entity, last_entity):
        begin, end = moment_starts[entity], moment_starts[entity + 1]
        origin, rows = all_starts[entity], all_starts[entity + 1] - all_starts[entity]
        row_starts[entity] = row_stops[entity] = origin
        if begin == end:
            continue
        first = reached_from(event, origin, origin + rows, at, begin, end, offsets[0])
        shift, most = first - origin, np.int64(0)
        for moment in range(begin, end):
            if ends[moment] < shift or ends[moment] > rows:
                return False
            most = max(most, np.int64(ends[moment]))
            edges[last, moment] = ends[moment] - shift
        stop = origin + most
        row_starts[entity], row_stops[entity] = first, stop
        for offset in range(last):
            write_edges(event, first, stop, at, begin, end, offsets[offset], edges[offset])
            for moment in range(begin, end):
                if edges[offset, moment] > edges[last, moment]:
                    return False
        prompt[first:stop] = 1
        low, high = late_starts[entity], late_starts[entity + 1]
        for place in range(low, high):
            rank = late[place]
            if rank < 0 or rank >= most:
                return False
            if rank >= shift:
                prompt[origin + rank] = 0
        if not _come(late, low, high, late_done, begin, end, shift, most, arriving[first:stop], arrived):
            return False
        if gone_done.shape[0]:
            low, high = gone_starts[entity], gone_starts[entity + 1]
            if not _come(gone, low, high, gone_done, begin, end, shift, most, leaving[first:stop], left):
                return False
    return True
