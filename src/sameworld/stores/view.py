"""What a snapshot is read from: the index of this host, or what one host has published for several."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import lmdb

from sameworld.stores.keeping import Kept
from sameworld.stores.lmdb import Index, Reach, entity_prefix, has_latest
from sameworld.stores.tallies import Found

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

    def chunks_of(self, place: bytes, reach: Reach, keys: Iterable[Sequence[Any]], t: int) -> list[Found]:
        return self.index.chunks_of(self.txn, place, reach, keys, t)

    def close(self) -> None:
        self.txn.abort()


@dataclass(slots=True)
class SharedView:
    """A view of what was fetched at once.

    Args:
        chunks: the first bytes of an entity's keys -> its chunks in order, and whether there may be others before them.
    """

    sequence: int
    stamp: int
    kept: Kept
    latest: Mapping[str, int]
    chunks: Mapping[bytes, tuple[bool, list[bytes]]]

    def has_latest(self, place: bytes, reach: Reach, key: Sequence[Any], t: int) -> bool:
        """Whether what was fetched of an entity has all latest rows that are wanted."""
        more, chunks = self.chunks[entity_prefix(place, key)]
        return not more or not reach.latest or has_latest(reversed(chunks), reach, t)

    def chunks_of(self, place: bytes, reach: Reach, keys: Iterable[Sequence[Any]], t: int) -> list[Found]:
        return [Found([] if None in key else self.chunks[entity_prefix(place, key)][1]) for key in keys]

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
