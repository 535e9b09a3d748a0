"""What a snapshot is read from: the index of this host, or what one host has published for several."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import lmdb

from sameworld.stores.keeping import Kept
from sameworld.stores.lmdb import Index, entity_prefix
from sameworld.stores.reach import Reach, has_latest
from sameworld.stores.tallies import Found, Missing, Record, choose

Wanted = Sequence[tuple[Reach, Sequence[tuple[Any, ...]]]]
"""How far reads reach, and of which entities."""


class View(Protocol):
    """One consistent view. Close it soon."""

    @property
    def sequence(self) -> int: ...
    @property
    def stamp(self) -> int: ...
    @property
    def kept(self) -> Kept: ...
    @property
    def latest(self) -> Mapping[str, int]:
        """Source content -> when its latest row became readable, in microseconds."""
        ...

    @property
    def moment(self) -> int | None:
        """The one that it is read at, after its stamp, where what was fetched depends on that."""
        ...

    def chunks_of(self, place: bytes, reach: Reach, keys: Iterable[Sequence[Any]], t: int) -> list[Found]:
        """Give what a grouping's windows at `t` need, and perhaps more: see `Index.chunks_of`."""
        ...

    def close(self) -> None: ...


@dataclass(slots=True)
class IndexView:
    """A view of this host's index."""

    sequence: int
    stamp: int
    kept: Kept
    latest: Mapping[str, int]
    index: Index
    txn: lmdb.Transaction
    moment: int | None = None

    def chunks_of(self, place: bytes, reach: Reach, keys: Iterable[Sequence[Any]], t: int) -> list[Found]:
        return self.index.chunks_of(self.txn, place, reach, keys, t)

    def close(self) -> None:
        self.txn.abort()


@dataclass(frozen=True, slots=True)
class Fetched:
    """What was fetched of an entity.

    Args:
        chunks: where each begins, and it, in order.
        more: whether there may be others before them.
        records: the tallies of all that windows reach, where there are too many chunks to fetch them all; the last of `chunks` is the entity's last.
    """

    chunks: Mapping[int, bytes]
    more: bool = False
    records: Sequence[Record] | None = None
    _made: dict[tuple[int, int], Found] = field(default_factory=dict[tuple[int, int], Found])

    def found(self, reach: Reach, t: int) -> Found:
        """Give what windows at a moment need of it, or raise `Missing`."""
        if self.records is None:
            return Found(list(self.chunks.values()))
        same = (id(reach), t)
        if same not in self._made:
            last = max(self.chunks)
            self._made[same] = choose(reach.windows.at(t), reach.layout, self.records, (last, self.chunks[last]), self.chunks.__getitem__)  # fmt: skip
        return self._made[same]

    def has_latest(self, reach: Reach, t: int) -> bool:
        """Whether the latest rows that are wanted are there."""
        if self.records is not None or not self.more or not reach.latest:
            return True
        return has_latest(reversed(list(self.chunks.values())), reach, t)


@dataclass(slots=True)
class SharedView:
    """A view of what was fetched at once.

    Args:
        moment: the one it was fetched for.
        entities: the first bytes of an entity's keys -> what was fetched of it.
    """

    sequence: int
    stamp: int
    kept: Kept
    latest: Mapping[str, int]
    moment: int | None
    entities: Mapping[bytes, Fetched]

    def chunks_of(self, place: bytes, reach: Reach, keys: Iterable[Sequence[Any]], t: int) -> list[Found]:
        try:
            return [
                Found([]) if None in key else self.entities[entity_prefix(place, key)].found(reach, t)
                for key in keys
            ]
        except Missing as missing:
            raise ValueError(f"what was fetched is for {self.moment}, and not for {t}") from missing

    def close(self) -> None:
        pass


class SharedStore(Protocol):
    """What one host publishes and several read; `sameworld.testing.stores` has what an adapter must show."""

    published: int
    """The last sequence that was published from here."""

    @property
    def away(self) -> bool:
        """Whether it did not answer when something was last published."""
        ...

    def kept(self) -> Kept:
        """Give what the publishing host keeps, or raise a StoreError."""
        ...

    def view(self, wanted: Wanted, t: int) -> View:
        """Fetch rows as of one sequence, for a moment that is not before `t`, or raise a StoreError."""
        ...

    def publish(self, index: Index) -> bool:
        """Bring it up to what the index has, all at once; give whether that could be done by what has changed."""
        ...

    def heal(self, index: Index) -> None:
        """Bring it up to what the index has, whatever was lost."""
        ...

    def close(self) -> None: ...
