"""Moments in any order -> values in their order: each part of the entities is sorted, swept once for all its moments, and let go of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sameworld.asof.columns import InputColumn
from sameworld.asof.order import sorted_order
from sameworld.asof.parts import parts_for
from sameworld.asof.plan import Read
from sameworld.asof.read import SortedRows, read_windows
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
        order: shape (moments,), which moment comes where.
        back: shape (moments,), where each moment comes.
        starts: shape (entities + 2,), where each entity's begin; those of no entity come before the first.
    """

    order: NDArray[np.int64]
    back: NDArray[np.int64]
    starts: NDArray[np.int64]


def in_order(
    codes: NDArray[np.int64], entities: int, as_of: NDArray[np.int64], at: NDArray[np.int64], run: Threads
) -> InOrder:
    """Put moments in order.

    Args:
        codes: shape (moments,), each one's entity; -1 for one without rows.
        entities: how many there are.
        as_of, at, run: as in `values_at`.
    """
    order, starts = sorted_order(codes + 1, entities + 1, (as_of, at), run)
    back = np.empty_like(order)
    back[order] = np.arange(order.shape[0])
    return InOrder(order, back, starts)


def values_at(
    parts: RowParts,
    moments: InOrder,
    as_of: NDArray[np.int64],
    at: NDArray[np.int64],
    reads: Sequence[Read],
    run: Threads,
) -> dict[str, pa.Array]:
    """Give every window of every read at every moment, in the moments' order.

    Args:
        parts: the rows; let go of in the end.
        moments: which are whose.
        as_of, at: shape (moments,), microseconds; rows readable before the one count, windows refer to the other.
        reads: the grouping's.
        run: threads.

    Raises:
        AsOfError: an integer sum does not fit int64.
    """
    cuts, order, starts = parts.cuts, moments.order, moments.starts
    as_of, at = run.take(as_of, order), run.take(at, order)

    def part(number: int) -> list[dict[str, pa.Array]]:
        rows = parts.rows(number)
        begins = starts[cuts[number] + 1 : cuts[number + 1] + 2]
        if number == 0:
            begins = starts[: cuts[1] + 2]
            rows = SortedRows(
                np.concatenate([[0], rows.starts]), rows.event, rows.available, rows.superseded, rows.inputs
            )
        result: list[dict[str, pa.Array]] = []
        first, last = int(begins[0]), int(begins[-1])
        for low in range(first, max(last, first + 1), MOST_MOMENTS):
            high = min(low + MOST_MOMENTS, last)
            some = np.clip(begins, low, high) - low
            result.append(read_windows(reads, rows, some, as_of[low:high], at[low:high]))
        return result

    # Rows that nobody asks about are not sorted.
    asked = np.flatnonzero(np.diff(starts[np.concatenate([[0], cuts[1:] + 1])])).tolist()
    found = [some for made in run.each(part, asked or [0]) for some in made]
    parts.close()
    places = pa.array(moments.back)

    def column(name: str) -> pa.Array:
        return pa.concat_arrays([some.pop(name) for some in found]).take(places)

    names = list(found[0])
    return dict(zip(names, run.each(column, names), strict=True))
