"""Moments in any order -> values in their order: each part of the entities is sorted, swept once for all its moments, and let go of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sameworld.asof.arrivals import Arrivals, nobody_arrives
from sameworld.asof.columns import InputColumn
from sameworld.asof.order import sorted_order
from sameworld.asof.parts import parts_for
from sameworld.asof.plan import Read
from sameworld.asof.read import SortedRows, arrivals_of, read_windows
from sameworld.asof.threads import Threads

MOST_MOMENTS = 4_000_000
"""No more are read together, so that memory is bounded where one entity has most of them."""


class RowParts(Protocol):
    """Sorted rows, in parts of their entities.

    Args:
        cuts: shape (parts + 1,), rising from 0: entities cuts[i] to cuts[i + 1] - 1 are part i.
    """

    cuts: NDArray[np.int64]

    def rows(self, number: int) -> SortedRows:
        """Give a part's rows; its entities are numbered from its first. Called in several threads."""
        ...

    def close(self) -> None:
        """Let go of the rows."""
        ...


class Slices:
    """Sorted rows that lie together already."""

    def __init__(self, rows: SortedRows) -> None:
        self._rows = rows
        total, entities = int(rows.starts[-1]), rows.starts.shape[0] - 1
        count = parts_for(total, entities)
        inner = np.searchsorted(rows.starts, np.linspace(0, total, count + 1)[1:-1])
        inner = np.unique(inner[(inner > 0) & (inner < entities)])
        self.cuts = np.concatenate([[0], inner, [entities]]).astype(np.int64)

    def rows(self, number: int) -> SortedRows:
        return entities_of(self._rows, *self.cuts[number : number + 2].tolist())

    def close(self) -> None:
        """Others may hold them too."""


def entities_of(rows: SortedRows, first: int, last: int) -> SortedRows:
    """Give the rows of entities first to last - 1, numbered from 0."""
    low, high = int(rows.starts[first]), int(rows.starts[last])
    inputs = [
        InputColumn(column.family, column.words[low:high], column.valid[low:high], column.texts)
        for column in rows.inputs
    ]
    return SortedRows(
        rows.starts[first : last + 1] - low,
        rows.event[low:high],
        rows.available[low:high],
        rows.superseded[low:high],
        inputs,
    )


@dataclass(frozen=True)
class InOrder:
    """Moments by entity, in each entity's order of knowing.

    Args:
        as_of, at: shape (moments,), microseconds; rows readable before the one count, windows refer to the other.
        back: shape (moments,), int32 or int64; the place here of each moment in the order in which they were asked about.
        starts: shape (entities + 2,), where each entity's begin; those of no entity come before the first.
    """

    as_of: NDArray[np.int64]
    at: NDArray[np.int64]
    back: NDArray[Any]
    starts: NDArray[np.int64]


def in_order(
    codes: NDArray[np.int64], entities: int, as_of: NDArray[np.int64], at: NDArray[np.int64], run: Threads
) -> InOrder:
    """Put moments in order.

    Args:
        codes: shape (moments,), each one's entity; -1 for one without rows.
        entities: how many there are.
        as_of, at: shape (moments,), see `InOrder`.
        run: threads.
    """
    order, starts = sorted_order(codes + 1, entities + 1, (as_of, at), run)
    moments = order.shape[0]
    back = np.empty(moments, np.int32 if moments < np.iinfo(np.int32).max else np.int64)
    back[order] = np.arange(moments)
    return InOrder(run.take(as_of, order), run.take(at, order), back, starts)


def values_at(
    parts: RowParts,
    moments: InOrder,
    reads: Sequence[Read],
    run: Threads,
    *,
    known: Mapping[int, Arrivals] | None = None,
    piece: int | None = None,
) -> dict[str, pa.ChunkedArray]:
    """Give every window of every read at every moment, in the moments' order.

    Args:
        parts: the rows; let go of in the end.
        moments: when is asked about whom.
        reads: the grouping's.
        run: threads.
        known: by their end, what `arrivals_at` gives, put together.
        piece: how many moments each chunk has, but for the last; all in one by default.

    Raises:
        AsOfError: an integer sum does not fit int64.
        OSError: what is known is of something else.
    """

    def part(own: _Part) -> list[dict[str, pa.Array]]:
        rows = _rows_of(parts, own)
        result: list[dict[str, pa.Array]] = []
        for low in range(own.low, max(own.high, own.low + 1), MOST_MOMENTS):
            high = min(low + MOST_MOMENTS, own.high)
            some = np.clip(own.begins, low, high) - low
            arrivals = {end: one.of(own.first, own.last, low, high) for end, one in (known or {}).items()}
            times = moments.as_of[low:high], moments.at[low:high]
            result.append(read_windows(reads, rows, some, *times, known=arrivals))
        return result

    found = [some for made in run.each(part, _parts(parts, moments)) for some in made]
    parts.close()
    count, names = moments.back.shape[0], list(found[0])
    places = [
        pa.array(moments.back[first : first + (piece or count)])
        for first in range(0, max(count, 1), piece or max(count, 1))
    ]

    def pieces() -> Iterator[tuple[pa.Array, pa.Array]]:
        for name in names:
            whole = pa.concat_arrays([some.pop(name) for some in found])
            yield from ((whole, some) for some in places)

    values = run.each(lambda of: of[0].take(of[1]), pieces())
    return {name: pa.chunked_array([next(values) for _ in places]) for name in names}


def fits_at_once(parts: RowParts, moments: InOrder) -> bool:
    """Whether no part has so many moments that they are not read together."""
    return all(own.high - own.low <= MOST_MOMENTS for own in _parts(parts, moments))


def arrivals_at(parts: Slices, moments: InOrder, end: int, run: Threads) -> Iterator[Arrivals]:
    """Give the arrivals for windows of which the last ends at `end`, one part of the entities after another."""
    asked = {own.number: own for own in _parts(parts, moments)}

    def part(number: int) -> Arrivals:
        if number not in asked:
            entities = parts.cuts[number + 1] - parts.cuts[number] + (number == 0)
            return nobody_arrives(int(entities))
        own = asked[number]
        times = moments.as_of[own.low : own.high], moments.at[own.low : own.high]
        return arrivals_of(_rows_of(parts, own), own.begins - own.low, *times, end)

    yield from run.each(part, range(parts.cuts.shape[0] - 1))


@dataclass(frozen=True)
class _Part:
    """A part of the entities, and their moments.

    Args:
        number: the rows' own.
        first, last: it has the groups first to last - 1; those are the entities, but for the first one, of moments of no entity.
        begins: shape (last - first + 1,), where each group's moments begin.
        low, high: its moments.
    """

    number: int
    first: int
    last: int
    begins: NDArray[np.int64]

    @property
    def low(self) -> int:
        return int(self.begins[0])

    @property
    def high(self) -> int:
        return int(self.begins[-1])


def _parts(parts: RowParts, moments: InOrder) -> list[_Part]:
    """Give the parts that have moments, or one where none has: rows that nobody asks about are not sorted."""
    firsts = np.concatenate([[0], parts.cuts[1:] + 1])
    asked = np.flatnonzero(np.diff(moments.starts[firsts])).tolist()
    result: list[_Part] = []
    for number in asked or [0]:
        first, last = firsts[number : number + 2].tolist()
        result.append(_Part(number, first, last, moments.starts[first : last + 1]))
    return result


def _rows_of(parts: RowParts, own: _Part) -> SortedRows:
    """Give a part's rows by its groups."""
    rows = parts.rows(own.number)
    if own.number > 0:
        return rows
    return SortedRows(
        np.concatenate([[0], rows.starts]), rows.event, rows.available, rows.superseded, rows.inputs
    )
