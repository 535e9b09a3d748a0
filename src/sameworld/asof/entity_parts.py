"""A source's rows, from any order to sorted parts of its entities: versions of a fact are brought together first, where there are facts."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import numpy as np

from sameworld.asof.parts import ROWS_A_PART, Parts, Scratch, Words, parts_for
from sameworld.asof.prepared import Reading, Sorted, lived, mixed, sort
from sameworld.asof.read import SortedRows
from sameworld.asof.threads import Threads


class EntityParts:
    """Rows that live at some time, in parts of their entities that are sorted one by one.

    Args:
        words: all rows, from `Reading.words`; read at once.
        reading: what makes them.
        entities: how many there are.
        rows: how many rows there are at most, if that is known.
        run: threads.
        scratch: where rows wait that are too many for memory.
    """

    def __init__(
        self,
        words: Iterable[Words],
        reading: Reading,
        entities: int,
        *,
        rows: int = 0,
        run: Threads,
        scratch: Scratch,
    ) -> None:
        words, rows = _counted(words, rows)
        count = parts_for(rows, entities)
        self.cuts = -(-np.arange(count + 1) * entities // count)
        self._reading = reading
        self._parts = Parts(count, scratch)
        kind = np.int32 if entities < np.iinfo(np.int32).max else np.int64
        for some in _lives(words, reading, rows, run, scratch):
            entity = some["entity"]
            # Rounded up as the cuts are; -1 stays out.
            part = np.where(entity < 0, -1, entity * count // max(entities, 1))
            self._parts.put({**some, "entity": entity.astype(kind)}, part)

    def sorted(self, number: int) -> Sorted:
        """Give a part's rows; its entities are numbered from its first."""
        first, last = self.cuts[number : number + 2].tolist()
        words = self._parts.take(number)
        words["entity"] -= first
        return sort(words, self._reading, last - first)

    def rows(self, number: int) -> SortedRows:
        """Give a part's rows."""
        return self.sorted(number).rows

    def close(self) -> None:
        """Let go of the rows."""
        self._parts.close()


def _counted(words: Iterable[Words], rows: int) -> tuple[Iterable[Words], int]:
    """Give the words and about how many rows there are; exactly, when they are few."""
    coming, seen, size = iter(words), list[Words](), 0
    for some in coming:
        seen.append(some)
        size += some["entity"].shape[0]
        if size > 4 * ROWS_A_PART:
            return itertools.chain(seen, coming), rows or 16 * size
    return seen, size


def _lives(
    words: Iterable[Words], reading: Reading, rows: int, run: Threads, scratch: Scratch
) -> Iterator[Words]:
    """Give the rows of `words` as `lived` gives them: batch by batch, or all versions of some facts together."""
    coming = iter(words)
    first = next(coming)
    if "fact_low" not in first:
        yield lived(first, reading)
        for some in coming:
            yield lived(some, reading)
        return
    count = parts_for(rows, rows)
    parts = Parts(count, scratch)
    for some in itertools.chain([first], coming):
        part = (mixed(some) * np.uint64(count) >> np.uint64(32)).astype(np.int64)
        parts.put(some, part)
    yield from run.each(lambda number: lived(parts.take(number), reading), range(count))
