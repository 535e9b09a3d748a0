"""How far back a grouping's windows reach, and whether what was fetched of an entity is enough for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from sameworld.asof.aggregations import LAST, LATEST
from sameworld.asof.entity import AVAILABLE, EVENT, EntityReads
from sameworld.asof.plan import Grouping
from sameworld.asof.read import partials_of
from sameworld.stores import tallies
from sameworld.stores.chunks import Layout


class Reach:
    """What to read of a grouping and how far back, worked out once.

    Args:
        grouping: whose reads.
        layout: how its rows are written.
        schema_hash: of the schema they were written with.
    """

    def __init__(self, grouping: Grouping, layout: Layout, schema_hash: str) -> None:
        self.content = grouping.content
        self.layout = layout
        self.schema_hash = schema_hash
        self.longest_past = grouping.longest_past
        windows = [window.bounds for read in grouping.reads for window in read.windows]
        self.ahead = max((end for _, end in windows), default=0)
        self.past = max((-start for start, _ in windows if start is not None), default=0)
        # Inputs whose latest rows of all history are wanted, and how many: the search goes back until they are found. Anything else over all history
        # reads all of it.
        self.latest: dict[int, int] = {}
        self.everything = False
        for read in grouping.reads:
            if all(window.bounds[0] is not None for window in read.windows):
                continue
            for partial, item, rows in partials_of(read):
                if partial in (LAST, LATEST):
                    self.latest[item] = max(rows, self.latest.get(item, 0))
                else:
                    self.everything = True
        self.reads = EntityReads(grouping.reads, layout.words)
        self.windows = tallies.Windows(grouping.reads, layout.words)

    def goes_as_far_as(self, other: Reach) -> bool:
        """Whether rows that were fetched for this are all that another over the same rows needs."""
        return (
            self.ahead >= other.ahead
            and (self.everything or (not other.everything and self.past >= other.past))
            and (self.everything or all(self.latest.get(i, 0) >= n for i, n in other.latest.items()))
        )


def has_latest(chunks: Iterable[Any], reach: Reach, t: int) -> bool:
    """Whether an entity's chunks have all latest rows that are wanted at a moment, and then at any later one."""
    searching = reach.latest
    for chunk in chunks:
        if not searching:
            break
        searching = still_wanted(searching, chunk, reach.layout, t)
    return not searching


def still_wanted(
    wanted: Mapping[int, int], chunk: bytes | memoryview, layout: Layout, t: int
) -> dict[int, int]:
    """Give how many rows are wanted of each input once those of a chunk that are readable at `t` are found; nothing of an input that has enough."""
    rows = layout.unpack(chunk)[0]
    usable = rows[(rows[:, EVENT] < t) & (rows[:, AVAILABLE] < t)]
    left: dict[int, int] = {}
    for number, count in wanted.items():
        word, mask = layout.words.valid[number]
        missing = count - int(np.count_nonzero(usable[:, word] & mask))
        if missing > 0:
            left[number] = missing
    return left
